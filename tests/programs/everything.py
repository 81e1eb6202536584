"""Threads, asyncio, subprocesses, an open sqlite transaction, a listening socket with clients."""
import asyncio
import queue
import socket
import sqlite3
import subprocess
import sys
import threading
import time

from driver import Blob, ask, done, expect, grows, ready, same, say, start, problems

blob = Blob(32)
count = {"ticks": 0, "queue": 0, "echo": 0, "cat": 0, "late": 0.0}


def ticker():
    while True:
        before = time.monotonic()
        time.sleep(0.002)
        # A monotonic clock that jumps would be seen here.
        count["late"] = max(count["late"], time.monotonic() - before)
        count["ticks"] += 1


numbers = queue.Queue(8)


def producer():
    number = 0
    while True:
        number += 1
        numbers.put(number)
        if number % 64 == 0:
            time.sleep(0.001)


def consumer():
    last = 0
    while True:
        number = numbers.get()
        if number != last + 1:
            problems.append("queue")
            say(f"queue: {number} after {last}")
        last = count["queue"] = number


async def asynchronous(started):
    async def serve(reader, writer):
        while line := await reader.readline():
            writer.write(line)
            await writer.drain()

    server = await asyncio.start_server(serve, "127.0.0.1", 7000)
    reader, writer = await asyncio.open_connection("127.0.0.1", 7000)
    cat = await asyncio.create_subprocess_exec(
        "cat", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )

    async def talk(name, reader, writer):
        while True:
            line = f"{name} {count[name]}\n".encode()
            writer.write(line)
            await writer.drain()
            same(name, await reader.readline(), line)
            count[name] += 1
            await asyncio.sleep(0.001)

    started.set()
    await asyncio.gather(talk("echo", reader, writer), talk("cat", cat.stdout, cat.stdin), server.serve_forever())


for work in (ticker, producer, consumer):
    threading.Thread(target=work, daemon=True).start()
started = threading.Event()
threading.Thread(target=lambda: asyncio.run(asynchronous(started)), daemon=True).start()
started.wait()

def elsewhere(statement):
    """What another process sees. (In one process, sqlite tells files apart by their device numbers, and those of a
    tmpfs are others after a restore.)"""
    connect = "sqlite3.connect('/data/test.db', isolation_level=None, timeout=0)"
    code = f"import sqlite3; print({connect}.execute({statement!r}).fetchone())"
    run = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return run.stdout.strip().splitlines()[-1]


doubler = start("sh", "-c", "while read x; do echo $((x * 2)); done")
same("child", ask(doubler, "21"), "42")

database = sqlite3.connect("/data/test.db", isolation_level=None)
database.execute("PRAGMA journal_mode=WAL")
database.execute("CREATE TABLE t (n INTEGER, text TEXT)")
database.execute("INSERT INTO t VALUES (0, 'committed')")
database.execute("BEGIN IMMEDIATE")
database.executemany("INSERT INTO t VALUES (?, ?)", [(n, "x" * 100) for n in range(1, 1001)])

listener = socket.create_server(("127.0.0.1", 7001))
client = socket.create_connection(("127.0.0.1", 7001))
accepted, _ = listener.accept()
client.sendall(b"on its way")

while min(count["ticks"], count["queue"], count["echo"], count["cat"]) < 10:
    time.sleep(0.001)
ready()

blob.verify()
for name in ("ticks", "queue", "echo", "cat"):
    grows(name, lambda: count[name])
same("child", ask(doubler, "50"), "100")
same("in the transaction", database.execute("SELECT count(*), sum(n) FROM t").fetchone(), (1001, 500500))
same("outside the transaction", elsewhere("SELECT count(*) FROM t"), "(1,)")
expect("the database is locked", "database is locked" in elsewhere("BEGIN IMMEDIATE"))
database.execute("COMMIT")
same("after the transaction", elsewhere("SELECT count(*) FROM t"), "(1001,)")
same("integrity", elsewhere("PRAGMA integrity_check"), "('ok',)")
same("what was on its way", accepted.recv(100), b"on its way")
accepted.sendall(b"answer")
same("answer", client.recv(100), b"answer")
with socket.create_connection(("127.0.0.1", 7001)) as fresh:
    another, _ = listener.accept()
    fresh.sendall(b"new")
    same("new connection", another.recv(100), b"new")
expect(f"the clock does not jump: {count['late']} s", count["late"] < 30)
done()

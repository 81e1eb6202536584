"""PostgreSQL in the middle of transactions. Argument: the folder of its programs."""
import os
import signal
import subprocess
import sys

from driver import ask, done, expect, ready, same, start, until

programs = sys.argv[1]
os.mkdir("/data/log")


def run(name, *args):
    return subprocess.run(
        [f"{programs}/{name}", *args], check=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    ).stdout


def psql():
    return start(f"{programs}/psql", "-h", "/data", "-d", "postgres", "-XqAt")


run("initdb", "-D", "/data/db", "--no-sync", "-A", "trust")
with open("/data/log/server", "wb") as log:
    server = subprocess.Popen(
        [f"{programs}/postgres", "-D", "/data/db", "-k", "/data", "-c", "listen_addresses=127.0.0.1"],
        stdout=log,
        stderr=log,
    )
until("it accepts connections", lambda: subprocess.run([f"{programs}/pg_isready", "-q", "-h", "/data"]).returncode == 0)
writer, reader = psql(), psql()
same("table", ask(writer, "CREATE TABLE t AS SELECT n, md5(n::text) AS text FROM generate_series(1, 50000) n; SELECT 1;"), "1")
DIGEST = "SELECT count(*) || md5(string_agg(text, '' ORDER BY n)) FROM t;"
before = ask(reader, DIGEST)
ask(writer, "BEGIN; INSERT INTO t SELECT n, 'new' FROM generate_series(50001, 60000) n; SELECT 1;")
inside = ask(writer, DIGEST)
# A snapshot that must stay, and somebody who waits for a lock.
ask(reader, "BEGIN ISOLATION LEVEL REPEATABLE READ; " + DIGEST)
waiting = psql()
ask(waiting, "SELECT 1;")
waiting.stdin.write("BEGIN; LOCK TABLE t IN ACCESS EXCLUSIVE MODE; SELECT 'locked'; COMMIT;\n")
waiting.stdin.flush()
other = psql()
until("it waits", lambda: ask(other, "SELECT count(*) FROM pg_locks WHERE NOT granted;") == "1")
query = subprocess.Popen(
    [f"{programs}/psql", "-h", "127.0.0.1", "-d", "postgres", "-XqAt", "-c",
     "SELECT count(pg_sleep(0.001)) FROM generate_series(1, 1000)"],
    stdout=subprocess.PIPE, text=True,
)
until("a query runs", lambda: ask(other, "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep%' AND state = 'active' AND pid <> pg_backend_pid();") == "1")
ready()

same("in the transaction", ask(writer, DIGEST), inside)
same("in the snapshot", ask(reader, DIGEST), before)
same("who waits", ask(other, "SELECT count(*) FROM pg_locks WHERE NOT granted;"), "1")
ask(writer, "COMMIT; SELECT 1;")
same("in the snapshot, after another's commit", ask(reader, DIGEST), before)
ask(reader, "COMMIT; SELECT 1;")
same("the lock", waiting.stdout.readline(), "locked\n")
same("after the commits", ask(reader, DIGEST), inside)
same("the query", query.communicate()[0], "1000\n")
run("psql", "-h", "/data", "-d", "postgres", "-c", "VACUUM ANALYZE t", "-c", "CHECKPOINT")
# A server that ends tells those whose clients are gone, which would be in its log.
until("four clients are left", lambda: ask(other, "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend';") == "4")
same("the server's end", server.poll(), None)
server.send_signal(signal.SIGINT)
same("how it ends", server.wait(), 0)
with open("/data/log/server") as log:
    text = log.read()
expect("nothing went wrong: " + text, "PANIC" not in text and "was terminated" not in text and "could not" not in text)
done()

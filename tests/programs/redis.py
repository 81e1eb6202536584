"""redis-server under redis-benchmark; the data is compared."""
import hashlib
import random
import socket
import subprocess

from driver import done, expect, grows, ready, same, until


class Redis:
    def __init__(self):
        self.socket = socket.create_connection(("127.0.0.1", 6379))
        self.file = self.socket.makefile("rb")

    def send(self, *words):
        words = [w if isinstance(w, bytes) else str(w).encode() for w in words]
        head = b"*%d\r\n" % len(words)
        self.socket.sendall(head + b"".join(b"$%d\r\n%s\r\n" % (len(w), w) for w in words))

    def answer(self):
        line = self.file.readline()
        kind, rest = line[:1], line[1:-2]
        if kind == b"$":
            return None if rest == b"-1" else self.file.read(int(rest) + 2)[:-2]
        if kind == b"*":
            return [self.answer() for _ in range(int(rest))]
        assert kind in b"+:", line
        return rest

    def call(self, *words):
        self.send(*words)
        return self.answer()

    def digest(self):
        """Of all keys with their values and remaining structure."""
        total = hashlib.sha256()
        keys = sorted(self.call("KEYS", "*"))
        for key in keys:
            total.update(key + b"=" + self.call("DUMP", key))
        return len(keys), total.hexdigest()

    def sets(self):
        info = self.call("INFO", "commandstats").decode()
        line = next((l for l in info.splitlines() if l.startswith("cmdstat_set:")), "calls=0,")
        return int(line.split("calls=")[1].split(",")[0])

    def clients(self):
        info = self.call("INFO", "clients").decode()
        return next(l for l in info.splitlines() if l.startswith("connected_clients:"))


server = subprocess.Popen(
    ["redis-server", "--port", "6379", "--dir", "/data", "--appendonly", "yes", "--save", "", "--logfile", "/data/log"]
)
redis = until("redis-server answers", Redis)
random.seed(3)
for n in range(4000):
    redis.send("SET", f"text:{n}", random.randbytes(200))
    redis.send("HSET", f"hash:{n % 100}", n, n * n)
    redis.send("RPUSH", f"list:{n % 10}", n)
    redis.send("ZADD", f"sorted:{n % 10}", n % 97, n)
    redis.send("SETEX", f"expires:{n % 50}", 100000, n)
    for _ in range(5):
        redis.answer()
before = redis.digest()
with open("/data/benchmark", "wb") as out:
    benchmark = subprocess.Popen(
        ["redis-benchmark", "--dbnum", "1", "-t", "set", "-n", "1000000000", "-c", "20", "-P", "4", "-r", "1000"],
        stdout=out,
        stderr=out,
    )
until("the benchmark is at work", lambda: redis.sets() > 5000)
clients = redis.clients()
ready()

same("data", redis.digest(), before)
same("clients", redis.clients(), clients)
grows("the benchmark", redis.sets)
same("the server's end", server.poll(), None)
same("the benchmark's end", benchmark.poll(), None)
benchmark.terminate()
benchmark.wait()
same("a new client finds it", Redis().call("GET", "text:17"), redis.call("GET", "text:17"))
redis.call("CONFIG", "SET", "appendfsync", "always")
redis.call("SET", "new", "value")
# It forks, and the child shares its memory.
redis.call("BGREWRITEAOF")
until("the log is rewritten", lambda: b"aof_rewrite_in_progress:0" in redis.call("INFO", "persistence"))
expect("rewriting worked", b"aof_last_bgrewrite_status:ok" in redis.call("INFO", "persistence"))
expect("it took the lot", redis.digest()[0] == before[0] + 1)
done()

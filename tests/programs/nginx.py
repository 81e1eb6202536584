"""nginx with workers, and a client that keeps its connection."""
import hashlib
import http.client
import os
import signal
import subprocess

from driver import done, expect, ready, same, until

CONFIGURATION = """
daemon off; master_process on; worker_processes 2; pid /data/pid; error_log /data/error.log;
events { worker_connections 64; }
http {
    access_log /data/access.log; keepalive_timeout 1d; keepalive_requests 1000000; sendfile on; tcp_nopush on;
    client_body_temp_path /data/body; proxy_temp_path /data/proxy; fastcgi_temp_path /data/fastcgi;
    uwsgi_temp_path /data/uwsgi; scgi_temp_path /data/scgi;
    server { listen 127.0.0.1:8080; listen unix:/data/socket; root /data/www; }
}
"""
os.makedirs("/data/www")
content = os.urandom(1 << 20)
for name, data in (("www/file", content), ("nginx.conf", CONFIGURATION.encode())):
    with open(f"/data/{name}", "wb") as file:
        file.write(data)


def get(connection):
    connection.request("GET", "/file")
    return hashlib.sha256(connection.getresponse().read()).hexdigest()


def connect():
    connection = http.client.HTTPConnection("127.0.0.1", 8080)
    connection.connect()
    return connection


def workers():
    with open(f"/proc/{master.pid}/task/{master.pid}/children") as file:
        return sorted(file.read().split())


expected = hashlib.sha256(content).hexdigest()
master = subprocess.Popen(["nginx", "-p", "/data", "-c", "/data/nginx.conf"])
kept = until("nginx answers", connect)
same("file", get(kept), expected)
until("two workers are there", lambda: len(workers()) == 2)
before, address = workers(), kept.sock.getsockname()
# An answer that is under way: more than fits between the two.
slow = connect()
slow.request("GET", "/file")
ready()

same("workers", workers(), before)
same("what was under way", hashlib.sha256(slow.getresponse().read()).hexdigest(), expected)
for _ in range(3):
    same("the kept connection's file", get(kept), expected)
same("the connection", kept.sock.getsockname(), address)
same("a new connection's file", get(connect()), expected)
master.send_signal(signal.SIGHUP)
until("workers are replaced", lambda: len(workers()) >= 2 and not set(before) <= set(workers()))
same("file after reloading", get(connect()), expected)
same("the master's end", master.poll(), None)
master.send_signal(signal.SIGQUIT)
slow.close()
kept.close()
same("how it ends", master.wait(), 0)
with open("/data/access.log") as log:
    lines = log.read().splitlines()
expect(f"{len(lines)} lines are logged, all with status 200", len(lines) == 7 and all(" 200 " in l for l in lines))
done()

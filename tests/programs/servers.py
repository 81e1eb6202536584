"""Servers for port-forward: an echo on 127.0.0.1:7001, one on [::1]:7002, one that sums up what it heard when its peer has
said everything (7003), one that accepts and never says a word (7004), and HTTP on 8000."""
import http.server
import socket
import socketserver
import threading


class Echo(socketserver.BaseRequestHandler):
    def handle(self):
        while data := self.request.recv(1 << 16):
            self.request.sendall(data)


class Sum(socketserver.BaseRequestHandler):
    def handle(self):
        count, total = 0, 0
        while data := self.request.recv(1 << 16):
            count += len(data)
            total += sum(data)
        self.request.sendall(b"%d %d\n" % (count, total))


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 512


class Server6(Server):
    address_family = socket.AF_INET6


class Files(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


silent = socket.create_server(("127.0.0.1", 7004), backlog=64)
servers = [
    Server(("127.0.0.1", 7001), Echo),
    Server6(("::1", 7002), Echo),
    Server(("127.0.0.1", 7003), Sum),
    http.server.ThreadingHTTPServer(("127.0.0.1", 8000), Files),
]
for server in servers[1:]:
    threading.Thread(target=server.serve_forever, daemon=True).start()
servers[0].serve_forever()

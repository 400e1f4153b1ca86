"""A server that keeps connections, and answers in every way that HTTP/1 has. Arguments: address, port."""

import http.server
import socketserver
import sys
import time
from urllib.parse import parse_qs, urlsplit


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_):
        pass

    def handle_expect_100(self):
        time.sleep(0.3)
        return super().handle_expect_100()

    def do_GET(self):
        url = urlsplit(self.path)
        query = parse_qs(url.query)
        self.pause = int(query.get("pause_ms", ["0"])[0]) / 1000
        self.size = int(query.get("size", ["10"])[0])
        length = self.headers.get("Content-Length")
        if length:
            self.rfile.read(int(length))
        time.sleep(int(query.get("think_ms", ["0"])[0]) / 1000)
        getattr(self, "answer_" + url.path.strip("/"))()

    do_POST = do_HEAD = do_GET

    def begin(self, status, *fields):
        self.send_response(status)
        for name, value in fields:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.flush()

    def halves(self):
        body = b"x" * self.size
        yield body[: self.size // 2]
        time.sleep(self.pause)
        yield body[self.size // 2 :]

    def answer_length(self):
        self.begin(200, ("Content-Length", str(self.size)))
        if self.command != "HEAD":
            for half in self.halves():
                self.wfile.write(half)

    def answer_chunked(self):
        self.begin(200, ("Transfer-Encoding", "chunked"))
        for half in self.halves():
            self.wfile.write(b"%x\r\n%s\r\n" % (len(half), half))
        time.sleep(self.pause)
        self.wfile.write(b"0\r\n\r\n")

    def answer_close(self):
        self.close_connection = True
        self.begin(200)
        for half in self.halves():
            self.wfile.write(half)

    def answer_events(self):
        self.begin(200, ("Content-Type", "text/event-stream"))
        try:
            while True:
                self.wfile.write(b"data: x\n\n")
                time.sleep(0.02)
        except OSError:
            self.close_connection = True

    def answer_socket(self):
        self.close_connection = True
        self.begin(101, ("Connection", "Upgrade"), ("Upgrade", "websocket"))
        while byte := self.rfile.read(1):
            self.wfile.write(byte)


class Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128


Server((sys.argv[1], int(sys.argv[2])), Handler).serve_forever()

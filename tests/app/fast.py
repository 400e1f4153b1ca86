"""A worker that does next to nothing, and so answers at once: a load balancer's connections to it are never quiet for long.
`?wait=20` has it answer after 20 ms.

Started like worker.py, with the same environment and the same journal. One thread, one event loop, HTTP/1.1 with a
Content-Length.
"""

import asyncio
import os
import socket
import sys
import time

PORT = int(next(a for a in sys.argv if a.startswith("--port=")).split("=")[1])
HOST = next((a.split("=")[1] for a in sys.argv if a.startswith("--host=")), os.environ.get("WORKER_HOST", "127.0.0.1"))
APP_DIR = os.environ["APP_DIR"]


def field(head, name):
    """A header field's value; the name is in lower case."""
    for line in head.split(b"\r\n")[1:]:
        key, _, value = line.partition(b":")
        if key.lower() == name:
            return value.strip()
    return b""


class Fast(asyncio.Protocol):
    with open(os.path.join(APP_DIR, "current", "VERSION"), encoding="utf-8") as file:
        version = file.read().strip()
    journal = os.open(
        os.path.join(APP_DIR, "journal", "%d.log" % PORT), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644
    )
    head = "HTTP/1.1 200 OK\r\nX-Version: %s\r\nX-Port: %d\r\nX-Pid: %d\r\nX-Cold: 0\r\n" % (version, PORT, os.getpid())

    def connection_made(self, transport):
        self.transport = transport
        self.received = b""

    def note(self, kind, request_id, rest=""):
        line = "%s %s %d%s\n" % (kind, request_id, time.monotonic_ns(), rest)
        os.write(self.journal, line.encode())

    def data_received(self, data):
        self.received += data
        while b"\r\n\r\n" in self.received:
            head, _, rest = self.received.partition(b"\r\n\r\n")
            length = int(field(head, b"content-length") or 0)
            if len(rest) < length:
                return
            self.received = rest[length:]
            self.answer(head, length)

    def answer(self, head, length):
        request_id = field(head, b"x-request-id").decode()
        if request_id:
            self.note("B", request_id, " %d %s 0" % (os.getpid(), self.version))
        method, path, _ = head.split(b"\r\n")[0].decode().split(" ")
        path, _, wait = path.partition("?wait=")
        body = self.version if path == "/version" else str(length) if method == "POST" else "<html>%d</html>\n" % PORT
        close = field(head, b"connection").lower() == b"close"
        named = "X-Request-Id: %s\r\n" % request_id if request_id else ""
        last = "Connection: close\r\n" if close else ""
        fields = "%s%s%sContent-Length: %d\r\n\r\n%s" % (self.head, named, last, len(body), body)
        if wait:
            asyncio.get_running_loop().call_later(int(wait) / 1000, self.send, fields.encode(), request_id, close)
        else:
            self.send(fields.encode(), request_id, close)

    def send(self, text, request_id, close):
        if self.transport.is_closing():
            return
        self.transport.write(text)
        if request_id:
            self.note("E", request_id)
        if close:
            self.transport.close()


async def serve():
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((HOST, PORT))
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Fast, sock=listener, backlog=128)
    await server.serve_forever()


asyncio.run(serve())

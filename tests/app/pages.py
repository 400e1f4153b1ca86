"""A worker whose pages go on asking the version that made them, however many deploys come in between.

Started like fast.py, with the same environment and the same journal; `--host=127.77.0.3` listens there. It serves
`GET /page`, a page (`/page?cache=5`: a public copy of it may be kept for 5 s), `GET` and `POST /xhr`, which say who
answered, in JSON, and `/version`; `?slow=2` takes 2 s. What is wrong with a worker of a release is in its faults.json
(app.rs): `crash`, `hang`, `500`, `old-version`. The journal has a line for each connection that was accepted (`C PEER NS PID VERSION`)
and, on the line of each request that begins, its connection's peer port, its method and its path, too.
"""

import asyncio
import json
import os
import secrets
import socket
import sys
import time


def option(name, default):
    return next((a.split("=", 1)[1] for a in sys.argv if a.startswith("--%s=" % name)), default)


PORT = int(option("port", "0"))
HOST = option("host", os.environ.get("WORKER_HOST", "127.0.0.1"))
APP_DIR = os.environ["APP_DIR"]


def installed():
    """The version on disk, for a worker that nobody told which one it is."""
    with open(os.path.join(APP_DIR, "current", "VERSION"), encoding="utf-8") as file:
        return file.read().strip()


# What an app does for its lane: it puts the lane into its pages, and what they ask for carries it.
LANE = os.environ.get("DEPLOYER_LANE", "")
VERSION = os.environ.get("DEPLOYER_VERSION") or installed()


def fault():
    """What is wrong with this worker of this version."""
    try:
        with open(os.path.join(APP_DIR, "releases", VERSION, "faults.json"), encoding="utf-8") as file:
            return json.load(file).get(str(PORT), "")
    except FileNotFoundError:
        return ""


FAULT = fault()
PAGE = """<!doctype html>
<title>%(version)s</title>
<body data-version="%(version)s" data-lane="%(lane)s" data-page="%(page)s">
<script>
const ask = (path, options = {}) => fetch(path, {...options, headers: {...options.headers, "X-Deployer-Lane": "%(lane)s"}});
</script>
"""


class Pages(asyncio.Protocol):
    journal = os.open(
        os.path.join(APP_DIR, "journal", "%d.log" % PORT), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644
    )
    connections = 0
    requests = 0

    def connection_made(self, transport):
        self.transport = transport
        self.peer = transport.get_extra_info("peername")[1]
        self.received = b""
        Pages.connections += 1
        self.number = Pages.connections
        self.note("C", self.peer, os.getpid(), VERSION)

    def note(self, kind, who, *rest):
        # One write() of one line on an O_APPEND file: whole even when the process is killed right after it.
        words = (kind, who, time.monotonic_ns(), *rest)
        os.write(self.journal, (" ".join(map(str, words)) + "\n").encode())

    def data_received(self, data):
        self.received += data
        while b"\r\n\r\n" in self.received:
            head, _, rest = self.received.partition(b"\r\n\r\n")
            line, *lines = head.decode("latin-1").split("\r\n")
            fields = {}
            for name, _, value in (text.partition(":") for text in lines):
                fields.setdefault(name.lower(), []).append(value.strip())
            length = int(fields.get("content-length", ["0"])[0])
            if len(rest) < length:
                return
            self.received = rest[length:]
            method, path, _ = line.split(" ")
            if path.startswith("http://"):
                # The absolute form, which every server has to take.
                path = "/" + path.split("/", 3)[3]
            self.answer(method, path, fields)

    def answer(self, method, path, fields):
        Pages.requests += 1
        # One that has no id of its own gets one: the journal has all requests.
        request = fields.get("x-request-id", ["%d-%d-%d" % (PORT, os.getpid(), Pages.requests)])[0]
        self.note("B", request, os.getpid(), VERSION, 0, self.peer, method, path)
        seconds = path.partition("slow=")[2]
        if seconds:
            asyncio.get_running_loop().call_later(float(seconds), self.reply, request, path, fields)
        else:
            self.reply(request, path, fields)

    def reply(self, request, path, fields):
        kind, more, body = self.content(path, fields)
        close = fields.get("connection", [""])[0].lower() == "close"
        status = "500 Internal Server Error" if FAULT == "500" else "200 OK"
        head = ["HTTP/1.1 " + status, "Content-Type: " + kind, "Content-Length: %d" % len(body), *more]
        head += ["X-Version: " + VERSION, "X-Port: %d" % PORT, "X-Pid: %d" % os.getpid(), "X-Cold: 0"]
        head += ["X-Request-Id: " + value for value in fields.get("x-request-id", [])]
        # Lets a cache see whose answer it is.
        head += ["X-Deployer-Lane: " + LANE] if LANE else []
        head += ["Connection: close"] if close else []
        if not self.transport.is_closing():
            self.transport.write(("\r\n".join(head) + "\r\n\r\n" + body).encode())
            self.note("E", request)
        if close:
            self.transport.close()

    def content(self, path, fields):
        """Media type, more header fields, body."""
        path, _, query = path.partition("?")
        if path == "/page":
            body = PAGE % {"version": VERSION, "lane": LANE, "page": secrets.token_hex(8)}
            kept = query.partition("cache=")[2]
            if kept:
                # What all may share sets no cookie.
                return "text/html", ["Cache-Control: public, max-age=%d" % int(kept)], body
            more = [] if "cookie" in fields else ["Set-Cookie: jar=%s" % secrets.token_hex(8)]
            return "text/html", ["Cache-Control: no-store", *more], body
        if path == "/xhr":
            said = {"version": VERSION, "lane": LANE, "pid": os.getpid(), "connection": self.number}
            # For the load balancers' tests: what has come through.
            said |= {"query": query, "named": fields.get("x-deployer-lane", []), "host": fields.get("host", [])}
            return "application/json", ["Cache-Control: no-store"], json.dumps(said)
        said = "v1" if FAULT == "old-version" else VERSION
        return "text/plain", ["Cache-Control: no-store"], said if path == "/version" else "ok"


async def serve():
    if FAULT == "crash":
        sys.exit(1)
    if FAULT == "hang":
        await asyncio.sleep(3600)
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((HOST, PORT))
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Pages, sock=listener, backlog=128)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve())

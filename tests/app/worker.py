"""One worker process of the test app: slow to import, slow on its first requests, honest about both.

Started as `worker.py --port=8003` with the environment that supervisor.rs writes. Every request that carries an
X-Request-Id is written to the journal when it begins and when its answer has been written, so that a replayed (doubled)
or a cut request cannot hide behind the load balancer.
"""

import json
import os
import sys

PORT = int(next(a for a in sys.argv if a.startswith("--port=")).split("=")[1])
APP_DIR = os.environ["APP_DIR"]
HOST = os.environ.get("WORKER_HOST", "127.0.0.1")
BACKLOG = int(os.environ.get("WORKER_BACKLOG", "128"))
REUSE_PORT = os.environ.get("WORKER_REUSE_PORT") == "1"
# Ports and megabytes: "8000:500 8001:500".
MEMORY = dict(pair.split(":") for pair in os.environ.get("WORKER_MEMORY", "").split())
IMPORT_SECONDS = float(os.environ.get("IMPORT_SECONDS", "1.0"))
COLD_SECONDS = float(os.environ.get("COLD_SECONDS", "0.15"))
SLOW_START_SECONDS = float(os.environ.get("SLOW_START_SECONDS", "8"))
WORK_SECONDS = 0.005

# Resolved once: a running process goes on serving the code it was started with, whatever `current` becomes.
RELEASE = os.path.realpath(os.path.join(APP_DIR, "current"))
TEMPLATES = ("/", "/pin/1")


def read_text(path):
    with open(path, encoding="utf-8") as file:
        return file.read().strip()


def read_fault():
    try:
        return json.loads(read_text(os.path.join(RELEASE, "faults.json"))).get(str(PORT), "")
    except FileNotFoundError:
        return ""


FAULT = read_fault()
if FAULT == "crash":
    # Before the real imports: however busy the machine is, it is over within supervisord's startsecs.
    sys.exit("fault: crash at start")

# To import tornado reads every certificate that the machine trusts, a quarter of what a start costs; nobody speaks TLS here.
os.environ["SSL_CERT_FILE"] = os.devnull

import asyncio  # noqa: E402
import mmap  # noqa: E402
import signal  # noqa: E402
import socket  # noqa: E402
import time  # noqa: E402
import urllib.parse  # noqa: E402

from tornado.httpserver import HTTPServer  # noqa: E402
from tornado.httputil import HTTPHeaders, ResponseStartLine  # noqa: E402

import streams  # noqa: E402


class Worker:
    """Answers requests; pays for each template once, blocking the whole process while it does."""

    def __init__(self):
        release = RELEASE if FAULT != "old-version" else os.path.join(APP_DIR, "releases", "v1")
        self.version = read_text(os.path.join(release, "VERSION"))
        # Shared with children, if there are any: what one of them has paid for is there for all.
        self.paid = mmap.mmap(-1, len(TEMPLATES))
        path = os.path.join(APP_DIR, "journal", "%d.log" % PORT)
        self.journal = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        # The loop itself holds its tasks by weak references only.
        self.tasks = set()
        # Connections that are never read again, and never closed.
        self.leaked = []

    def note(self, kind, request_id, *rest):
        # One write() of one line on an O_APPEND file: whole even when the process is killed right after it.
        words = (kind, request_id, time.monotonic_ns(), *rest)
        os.write(self.journal, (" ".join(map(str, words)) + "\n").encode())

    def __call__(self, request):
        """Called by tornado with a complete request."""
        needed = self.needed(request.path)
        warming = request.headers.get("User-Agent", "").startswith("deployer-warm/")
        cold = int(bool(needed) and not warming)
        request_id = request.headers.get("X-Request-Id", "")
        if request_id:
            self.note("B", request_id, os.getpid(), self.version, cold)
        for template in needed:
            time.sleep(COLD_SECONDS)
            self.paid[TEMPLATES.index(template)] = 1
        stream = streams.begin(self, request, request_id)
        if stream is not None:
            task = asyncio.get_running_loop().create_task(stream)
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)
        elif request.path == "/leak":
            self.leak(request)
        elif request.path in ("/version", "/health"):
            self.answer(request, request_id, cold)
        else:
            asyncio.get_running_loop().call_later(self.seconds(request.query), self.answer, request, request_id, cold)

    def needed(self, path):
        """The templates that a request of this path must pay for."""
        if path in ("/version", "/health"):
            return []
        unpaid = [t for t, paid in zip(TEMPLATES, self.paid[:]) if not paid]
        return [t for t in unpaid if path == t or path not in TEMPLATES]

    def answer(self, request, request_id, cold):
        # Callbacks, not a task: the machine that runs 40 of these has two cores.
        status, body = self.content(request)
        headers = HTTPHeaders()
        for name, value in (
            ("Content-Type", "text/plain"), ("Content-Length", str(len(body))), *self.names(cold).items(),
            ("X-Request-Id", request_id),
        ):
            if value:
                headers[name] = value
        written = request.connection.write_headers(ResponseStartLine("HTTP/1.1", *status), headers, body)
        # Before finish(), which closes the connection: from then on the worker counts as empty, and may be killed.
        if written.done():
            self.written(written, request_id)
        else:
            written.add_done_callback(lambda future: self.written(future, request_id))
        request.connection.finish()

    def leak(self, request):
        """Answers in time, and forgets the connection: what else comes on it, its end included, is never read."""
        stream = request.connection.detach()
        sock = socket.socket(fileno=os.dup(stream.socket.fileno()))
        self.leaked.append(sock)
        # tornado would look whether it is closed.
        stream.close()
        answer = b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nleaked\n"
        asyncio.get_running_loop().call_later(self.seconds(request.query), sock.sendall, answer)

    def names(self, cold=0):
        """Header fields that say who answers."""
        return {"X-Version": self.version, "X-Port": str(PORT), "X-Pid": str(os.getpid()), "X-Cold": str(cold)}

    def written(self, future, request_id):
        # An exception: the caller went away. Not an end, and not the worker's doing either.
        kind = "E" if future.exception() is None else "A"
        if request_id:
            self.note(kind, request_id)

    @staticmethod
    def seconds(query):
        if not query:
            return WORK_SECONDS
        slow = urllib.parse.parse_qs(query).get("slow")
        return float(slow[0]) if slow else WORK_SECONDS

    def content(self, request):
        if FAULT == "500":
            return (500, "Internal Server Error"), b"fault\n"
        if request.path == "/version":
            return (200, "OK"), self.version.encode()
        if request.path == "/health":
            return (200, "OK"), b"ok"
        if request.method == "POST":
            return (200, "OK"), b"%d" % len(request.body)
        return (200, "OK"), b"<html>%d</html>\n" % PORT


def listening_socket(port):
    family = socket.AF_INET6 if ":" in HOST else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if REUSE_PORT:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    sock.setblocking(False)
    sock.bind((HOST, port))
    sock.listen(BACKLOG)
    return sock


def touched_memory(megabytes):
    """Memory that is really there, in small pages: the kernel takes its time to give it back."""
    memory = mmap.mmap(-1, megabytes << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    memory[::mmap.PAGESIZE] = bytes([1]) * (len(memory) // mmap.PAGESIZE)
    return memory


async def serve(worker, sock):
    server = HTTPServer(worker)
    server.add_sockets([sock])
    await asyncio.Event().wait()


if __name__ == "__main__":
    if FAULT == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(IMPORT_SECONDS)
    if FAULT == "crash-late":
        sys.exit("fault: crash before listening")
    if FAULT == "slow-start":
        time.sleep(SLOW_START_SECONDS)
    while FAULT == "hang":
        time.sleep(3600)
    HELD = touched_memory(int(MEMORY[str(PORT)])) if str(PORT) in MEMORY else None
    asyncio.run(serve(Worker(), listening_socket(PORT + 1000 if FAULT == "wrong-port" else PORT)))

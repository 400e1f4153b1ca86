"""The ends of the suite `races`: a worker that knows whether it is warm, and callers in a great hurry.

    racer.py serve HOST PORT [v6only] [reuseport]    a worker
    racer.py storm '{"ports": [...], ...}'           non-blocking connect()s until it is told to end
    racer.py lowest PORT FIRST LAST                  connect()s from FIRST to LAST, while nobody else wants the processor
    racer.py grab ADDRESS PORT TO                    takes a port for an outgoing connection as soon as it is free
    racer.py meet PORT                               calls a port from that port, until it meets itself
    racer.py crowd FIRST FREE                        takes all ports from FIRST to the one that it says, but so many
    racer.py busy                                    keeps the first processor busy

A worker answers lines. `?` with `PORT PID COLD`, `wait SECONDS` the same later; `self` with what its own port answers to
`?`, and `keep` the same, keeping that connection. `GET /version ...` is answered in HTTP with the version, any other GET
warms it.
"""

import errno
import json
import os
import resource
import select
import socket
import struct
import sys
import threading
import time

IP_LOCAL_PORT_RANGE = 51
COLD = {True}
KEPT = []
# Connections of a storm at a time that nobody looks at.
SILENT = 30


def family(host):
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def serve(host, port, *options):
    listener = socket.socket(family(host))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if ":" in host:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int("v6only" in options))
    if "reuseport" in options:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.bind((host, int(port)))
    listener.listen(1024)
    own = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), int(port)
    # Read once: a running process goes on serving the code it was started with.
    with open(os.path.join(os.environ["APP_DIR"], "current/VERSION"), encoding="utf-8") as file:
        version = file.read().strip()
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=attend, args=(connection, own, version), daemon=True).start()


def attend(connection, own, version):
    lines = connection.makefile("rb")
    try:
        for line in lines:
            words = line.decode().split()
            if words[0] == "GET":
                while lines.readline().strip():
                    pass
                if words[1] != "/version":
                    COLD.discard(True)
                # The caller is to close first: what is left of a connection then is not at the worker's port.
                head = "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(version)
                connection.sendall((head + version).encode())
            else:
                connection.sendall(answer(words, own))
    except OSError:
        # The caller has gone.
        pass
    lines.close()
    connection.close()


def answer(words, own):
    if words[0] in ("self", "keep"):
        inner = socket.create_connection(own)
        if words[0] == "keep":
            KEPT.append(inner)
        inner.sendall(b"?\n")
        return inner.recv(64)
    if words[0] == "wait":
        time.sleep(float(words[1]))
    return b"%d %d %d\n" % (own[1], os.getpid(), bool(COLD))


class Storm:
    """Of ten connections six are looked after; two are closed at once, two are never looked at again."""

    def __init__(self, job):
        self.ports, self.flight, self.to = job["ports"], job["flight"], job["to"]
        self.epoll = select.epoll()
        self.begun, self.asked, self.silent = 0, {}, []
        self.seen = []

    def run(self):
        self.epoll.register(0, select.EPOLLIN | select.EPOLLHUP)
        print("begun", flush=True)
        told = False
        while not told or self.asked:
            # As many at once as there is room for, so that they meet.
            while not told and len(self.asked) < self.flight:
                self.begin()
            time.sleep(0.01)
            for number, _ in self.epoll.poll(1):
                if number == 0:
                    told = True
                    self.epoll.unregister(0)
                else:
                    self.go_on(number)
        print(json.dumps({"begun": self.begun, "silent": len(self.silent), "seen": self.seen}), flush=True)

    def begin(self):
        port = self.ports[self.begun % len(self.ports)]
        kind = self.begun // len(self.ports) % 10
        self.begun += 1
        sock = socket.socket(family(self.to))
        sock.setblocking(False)
        at = time.monotonic_ns()
        error = sock.connect_ex((self.to, port))
        if error not in (0, errno.EINPROGRESS):
            self.see(at, port, error=error)
        elif kind < 6:
            self.asked[sock.fileno()] = [sock, at, port, False]
            self.epoll.register(sock, select.EPOLLOUT)
            return
        elif kind < 8:
            self.silent.append(sock)
            sock = self.silent.pop(0) if len(self.silent) > SILENT else None
        if sock:
            sock.close()

    def go_on(self, number):
        flight = self.asked[number]
        sock, at, port, has_asked = flight
        try:
            error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if error:
                raise OSError(error, "connect")
            if not has_asked:
                sock.send(b"?\n")
                flight[3] = True
                self.epoll.modify(sock, select.EPOLLIN)
                return
            words = sock.recv(64).split()
            if len(words) != 3:
                raise OSError(errno.EPIPE, "no answer")
            self.see(at, port, answer=int(words[0]), pid=int(words[1]), cold=words[2] == b"1")
        except OSError as failure:
            self.see(at, port, error=failure.errno)
        self.epoll.unregister(sock)
        del self.asked[number]
        sock.close()

    def see(self, at, port, **what):
        self.seen.append({"at": at, "port": port, **what})


def storm(text):
    # The silent ones stay open with it, until its owner has counted them.
    racer = Storm(json.loads(text))
    racer.run()
    time.sleep(1000)


def grab(address, port, to):
    print("begun", flush=True)
    while True:
        sock = socket.socket()
        try:
            sock.bind((address, int(port)))
            sock.connect(("127.0.0.1", int(to)))
            break
        except OSError:
            sock.close()
            time.sleep(0.0005)
    time.sleep(1000)


def meet(port):
    """Both ends of the connection are one socket: nothing listens, and the port that it is given is the one it dials."""
    print("begun", flush=True)
    while True:
        sock = dropped(port, port)
        if sock.connect_ex(("127.0.0.1", int(port))) == 0 and sock.getsockname() == sock.getpeername():
            break
        sock.close()
        time.sleep(0.0005)
    time.sleep(1000)


def crowd(first, free):
    """As many as it may have files open, and not more than 15,000."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    ports = min(most - 100, 15000)
    for nth in range(ports):
        if nth % (ports // int(free)):
            sock = socket.socket()
            # An address that nobody calls from: the search for a port passes over all of them all the same.
            sock.bind(("127.0.0.9", int(first) + nth))
            KEPT.append(sock)
    print(int(first) + ports - 1, flush=True)
    time.sleep(1000)


def lowest(port, first, last):
    """Of eleven connections it drops ten at once; so it is nearly always in connect() when it loses the processor."""
    on_first_processor()
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    print("begun", flush=True)
    seen = []
    while not select.select([0], [], [], 0)[0]:
        for _ in range(10):
            sock = dropped(first, last)
            sock.setblocking(False)
            sock.connect_ex(("127.0.0.1", int(port)))
            sock.close()
        try:
            sock = dropped(first, last)
            sock.connect(("127.0.0.1", int(port)))
            sock.sendall(b"?\n")
            words = sock.recv(64).split()
            seen.append({"at": 0, "port": int(port), "answer": int(words[0]), "cold": words[2] == b"1"})
        except (OSError, IndexError) as failure:
            seen.append({"at": 0, "port": int(port), "error": getattr(failure, "errno", errno.EPIPE)})
        sock.close()
    print(json.dumps({"begun": 11 * len(seen), "silent": 0, "seen": seen}), flush=True)


def dropped(first, last):
    """Calls from one of these ports. When it goes, it leaves nothing behind, so that its port is free at once."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.setsockopt(socket.IPPROTO_IP, IP_LOCAL_PORT_RANGE, struct.pack("I", int(last) << 16 | int(first)))
    return sock


def on_first_processor():
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def busy():
    on_first_processor()
    print("begun", flush=True)
    while True:
        pass


if __name__ == "__main__":
    {"serve": serve, "storm": storm, "grab": grab, "meet": meet, "crowd": crowd, "lowest": lowest, "busy": busy}[sys.argv[1]](*sys.argv[2:])

"""Connections that a user without privileges holds against the daemon, until this program's input ends.

    hostile.py KIND NUMBER PATH|ADDRESS:PORT

KIND says what is done with each of NUMBER connections:

    idle    nothing
    half    half a head is sent, then a byte of it twice a second
    body    a head is sent, then a byte of the body twice a second
    huge    a head without an end is sent
    follow  events are followed, and not read
    trace   decisions are traced, and not read
    page    the page of metrics is asked for, and not read
    asked   the status is asked for, many times in one go, and not read

Then, over one more connection, a request is made, and its answer printed in one line of JSON: [seconds, answer].
"""

import json
import select
import socket
import sys
import threading
import time

FIRST = {
    "idle": b"",
    "half": b"GET /v1/sta",
    "body": b"POST /v1/services/web/roll HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\n{",
    "huge": b"GET /v1/status HTTP/1.1\r\nHost: x\r\nX-Long: " + b"x" * 200_000,
    "follow": b"GET /v1/events?follow=true HTTP/1.1\r\nHost: x\r\n\r\n",
    "trace": b"GET /v1/services/web/trace?duration_ms=60000&every=1 HTTP/1.1\r\nHost: x\r\n\r\n",
    "page": b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n",
    "asked": b"GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n" * 50,
}
KIND, NUMBER, WHERE = sys.argv[1], int(sys.argv[2]), sys.argv[3]
KEPT = []


def connect():
    if WHERE.startswith("/"):
        sock = socket.socket(socket.AF_UNIX)
        address = WHERE
    else:
        sock = socket.socket()
        # The answer does not fit.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        host, port = WHERE.rsplit(":", 1)
        address = (host, int(port))
    sock.settimeout(3)
    sock.connect(address)
    return sock


def one():
    try:
        sock = connect()
        # Kept also where it is closed while it sends.
        KEPT.append(sock)
        sock.sendall(FIRST[KIND])
    except OSError:
        pass


def fill():
    """Followers one after the other, each answered before the next, until one is refused: what of a crowd is taken in
    depends on whether the daemon is faster."""
    for _ in range(200):
        try:
            sock = connect()
            sock.sendall(FIRST[KIND])
            head = sock.recv(64)
        except OSError:
            continue
        if b" 503 " in head:
            break
        KEPT.append(sock)


def asked():
    """Other processes of this crowd may still be at it, so it is tried a few times; beside followers until it is refused."""
    answers = (" 503 ",) if KIND == "follow" else (" 200 ", " 503 ")
    for _ in range(50):
        seconds, said = ask()
        if any(answer in said for answer in answers):
            break
        time.sleep(0.1)
    print(json.dumps([seconds, said]), flush=True)


def ask():
    begun = time.monotonic()
    said = b""
    try:
        sock = connect()
        sock.settimeout(10)
        path = b"/v1/status" if WHERE.startswith("/") else b"/metrics"
        sock.sendall(b"GET " + path + b" HTTP/1.1\r\nHost: x\r\n\r\n")
        while part := sock.recv(65536):
            said += part
    except OSError as error:
        said += str(error).encode()
    return time.monotonic() - begun, said.decode(errors="replace")


def hold():
    threads = [threading.Thread(target=lambda: [one() for _ in range(NUMBER // 20)]) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if KIND == "follow":
        fill()
    asked()
    while not select.select([sys.stdin], [], [], 0.5)[0]:
        if KIND in ("half", "body"):
            for sock in KEPT:
                try:
                    sock.send(b"x", socket.MSG_DONTWAIT)
                except OSError:
                    pass


hold()

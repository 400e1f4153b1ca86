"""Dials an address over and over, and says which version took each connection: `probe.py HOST:PORT PAUSE_MS`.

A line each: when connect() was called and when it had returned (ns of CLOCK_MONOTONIC), the version, the worker's port; `E`
and the error in their place where there was no answer. Ends when its standard input does.
"""

import select
import socket
import sys
import time

REQUEST = (
    b"GET /page HTTP/1.1\r\nHost: web\r\nCookie: jar=probe\r\nSec-Fetch-Mode: navigate\r\nSec-Fetch-Dest: document\r\n"
    b"Connection: close\r\n\r\n"
)


def field(head, name):
    lines = head.split(b"\r\n")
    return next((line.split(b":", 1)[1].strip().decode() for line in lines if line.lower().startswith(name)), "?")


def once(to):
    begun = time.monotonic_ns()
    try:
        with socket.create_connection(to, timeout=20) as sock:
            done = time.monotonic_ns()
            sock.sendall(REQUEST)
            answer = b""
            while part := sock.recv(65536):
                answer += part
    except OSError as error:
        return "E %d %s" % (begun, error)
    head = answer.partition(b"\r\n\r\n")[0]
    return "%d %d %s %s" % (begun, done, field(head, b"x-version"), field(head, b"x-port"))


def main(address, pause):
    host, port = address.rsplit(":", 1)
    pause = float(pause) / 1000
    print("ready", flush=True)
    while not select.select([sys.stdin], [], [], pause)[0]:
        print(once((host, int(port))), flush=True)


main(*sys.argv[1:])

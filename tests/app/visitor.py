"""Visitors of a site: a new connection for each request, to several addresses in turn, until their input ends.

    visitor.py PAUSE_MS HOST:PORT ...
    visitor.py once HOST:PORT ...           asks each once

Prints, as a JSON list, what came of each: where to, when it began and ended (milliseconds since 1970), the version and the
lane that answered, or what went wrong.
"""

import json
import select
import socket
import sys
import time


def visit(target):
    host, _, port = target.rpartition(":")
    said = {"target": target, "began_ms": time.time() * 1000}
    try:
        with socket.create_connection((host, int(port)), timeout=10) as sock:
            said["peer"] = "%s:%d" % sock.getpeername()[:2]
            sock.sendall(b"GET /xhr HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n")
            text = b""
            while part := sock.recv(65536):
                text += part
        head, _, body = text.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200 "):
            raise ValueError("not an answer: %r" % text[:100])
        answer = json.loads(body)
        said |= {"version": answer["version"], "lane": answer["lane"]}
    except (OSError, ValueError) as error:
        said["error"] = "%s: %s" % (type(error).__name__, error)
    said["ended_ms"] = time.time() * 1000
    return said


def main(pause_ms, *targets):
    visits = []
    if pause_ms == "once":
        print(json.dumps([visit(target) for target in targets]))
        return
    while True:
        for target in targets:
            visits.append(visit(target))
            if select.select([sys.stdin], [], [], float(pause_ms) / 1000)[0]:
                print(json.dumps(visits), flush=True)
                return


main(*sys.argv[1:])

"""A caller that keeps one connection of TLS, sleeping in epoll.

    tls_caller.py ADDRESS PORT

Lines on standard input: a path, which is asked for, and answered by the length of the answer. Says "closed" when the
connection is, and ends.
"""

import select
import socket
import ssl
import sys

context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
context.check_hostname = False
context.verify_mode = ssl.CERT_NONE
stream = context.wrap_socket(socket.create_connection((sys.argv[1], int(sys.argv[2]))))
stream.setblocking(False)
poll = select.epoll()
poll.register(stream.fileno(), select.EPOLLIN)
poll.register(0, select.EPOLLIN)


def say(*words):
    print(*words, flush=True)


say("connected")
pending = b""
while True:
    for descriptor, _ in poll.poll():
        if descriptor == 0:
            line = sys.stdin.readline().strip()
            if not line:
                sys.exit()
            stream.send(f"GET {line} HTTP/1.1\r\nHost: web\r\n\r\n".encode())
            continue
        try:
            data = stream.recv(65536)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            continue
        except OSError:
            data = b""
        if not data:
            say("closed")
            sys.exit()
        pending += data
        head, end, body = pending.partition(b"\r\n\r\n")
        if end:
            length = int(head.lower().partition(b"content-length: ")[2].split(b"\r")[0])
            if len(body) >= length:
                pending = body[length:]
                say("answered", length)

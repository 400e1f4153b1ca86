"""A caller that keeps connections and sleeps in epoll_wait, as event loops do: for what may not be closed under it.

Started as `holder.py ADDRESS:PORT ...`; opens three connections to each, with one answered request on each, and says
`ready`. Then each line it reads is an order:
`look`  says for each address how many of its connections live: `127.0.0.1:8000 3 127.0.0.1:8001 0 ...`
`use`   sends a request on each that lives, and says for each address how many were answered.
"""

import select
import socket
import sys

EACH = 3


def address(text):
    host, port = text.rsplit(":", 1)
    return host.strip("[]"), int(port)


def exchange(connection):
    """Whether a request is answered with status 200."""
    try:
        connection.setblocking(True)
        connection.settimeout(10)
        connection.sendall(b"GET /pin/1 HTTP/1.1\r\nHost: web\r\n\r\n")
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += received(connection)
        head, _, body = answer.partition(b"\r\n\r\n")
        fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
        while len(body) < int(fields[b"content-length"]):
            body += received(connection)
        return b" 200 " in head.split(b"\r\n")[0]
    except OSError:
        return False
    finally:
        connection.setblocking(False)


def received(connection):
    data = connection.recv(65536)
    if not data:
        raise ConnectionError("closed")
    return data


def main():
    epoll = select.epoll()
    epoll.register(sys.stdin.fileno(), select.EPOLLIN)
    alive = {name: [socket.create_connection(address(name)) for _ in range(EACH)] for name in sys.argv[1:]}
    for connections in alive.values():
        for connection in connections:
            if not exchange(connection):
                sys.exit("no answer")
            epoll.register(connection.fileno(), select.EPOLLIN | select.EPOLLRDHUP)
    print("ready", flush=True)
    while True:
        ready = {fd for fd, _ in epoll.poll()}
        for connections in alive.values():
            for connection in [c for c in connections if c.fileno() in ready]:
                # Nothing is due on it: its end has come.
                epoll.unregister(connection.fileno())
                connections.remove(connection)
                connection.close()
        if sys.stdin.fileno() in ready:
            order = sys.stdin.readline().strip()
            if not order:
                return
            count = {name: sum(map(exchange, list(c))) if order == "use" else len(c) for name, c in alive.items()}
            print(" ".join("%s %d" % pair for pair in count.items()), flush=True)


main()

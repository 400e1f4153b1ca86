"""A flip by a watch, as many do it: `watchflip.py CONNECT NODE SOCKET` has the daemon behind the socket flip as soon as the
node changes, and ends. `watchflip.py CONNECT NODE` writes the node, which is made if it is not there.
"""

import socket
import sys
import threading

from kazoo.client import KazooClient

REQUEST = b'POST /v1/services/web/flip HTTP/1.1\r\nHost: deployer\r\nContent-Type: application/json\r\n'
BODY = b'{"at_ms":null}'


def flip(path):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)
        sock.sendall(REQUEST + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY)
        answer = b""
        while part := sock.recv(65536):
            answer += part
    status = answer.split(b"\r\n", 1)[0]
    if b" 200 " not in status + b" ":
        sys.exit("not flipped: %r" % answer)


def main(connect, node, *sockets):
    client = KazooClient(hosts=connect)
    client.start()
    client.ensure_path(node)
    if not sockets:
        client.set(node, b"flip")
    else:
        changed = threading.Event()
        client.get(node, watch=lambda event: changed.set())
        print("watching", flush=True)
        changed.wait()
        flip(sockets[0])
    client.stop()


main(*sys.argv[1:])

"""Binds addresses, says what came of it.

    binder.py once '[TRY, ...]'          tries each, prints the errno of each (0: bound) as a JSON list
    binder.py always '[TRY, ...]'        tries all again and again until its input ends, listens where it can, prints the
                                         number of each errno as a JSON object

A TRY is [HOST, PORT, WORD, ...]; words: udp, mptcp, reuseport, v6only, port=N (the kernel chooses, and has no other).
"""

import json
import select
import socket
import struct
import sys

IPPROTO_MPTCP = 262
IP_LOCAL_PORT_RANGE = 51


def bind(host, port, *words):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    kind = socket.SOCK_DGRAM if "udp" in words else socket.SOCK_STREAM
    sock = socket.socket(family, kind, IPPROTO_MPTCP if "mptcp" in words else 0)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if "reuseport" in words:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int("v6only" in words))
    for chosen in (int(word[5:]) for word in words if word.startswith("port=")):
        sock.setsockopt(socket.IPPROTO_IP, IP_LOCAL_PORT_RANGE, struct.pack("I", chosen << 16 | chosen))
    try:
        sock.bind((host, port))
        if kind == socket.SOCK_STREAM:
            sock.listen()
        return 0
    except OSError as error:
        return error.errno
    finally:
        sock.close()


mode, tries = sys.argv[1], json.loads(sys.argv[2])
if mode == "once":
    print(json.dumps([bind(*one) for one in tries]))
else:
    seen = {}
    while not select.select([sys.stdin], [], [], 0)[0]:
        for one in tries:
            errno = bind(*one)
            seen[errno] = seen.get(errno, 0) + 1
    print(json.dumps(seen))

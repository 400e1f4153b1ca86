"""What a user without privileges may do to a worker's port. It is passed to Python on its command line.

    stranger.py MODE PORT      does it, prints what came of it as one line, and stays until its input ends
"""

import errno
import socket
import struct
import sys
import threading

IP_LOCAL_PORT_RANGE = 51
TCP_MD5SIG = 14
TCP_FASTOPEN_CONNECT = 30


def reusing(family=socket.AF_INET):
    sock = socket.socket(family)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return sock


def itself(port):
    """A socket that has dialled itself, at another loopback address."""
    sock = reusing()
    sock.bind(("127.9.9.9", port))
    sock.connect(("127.9.9.9", port))
    return [sock]


def each_other(port):
    """Two sockets that have dialled each other, at other loopback addresses, both from the worker's port: their SYNs cross,
    as the first is lost where the second is not calling yet."""
    first, second = reusing(), reusing()
    first.bind(("127.9.9.7", port))
    second.bind(("127.9.9.8", port))
    barrier = threading.Barrier(2)
    for _ in range(3000):
        threads = [threading.Thread(target=dial, args=pair) for pair in ((barrier, first, "127.9.9.8", port), (barrier, second, "127.9.9.7", port))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if established(first) and established(second):
            return [first, second]
    raise SystemExit("never crossed")


def dial(barrier, sock, to, port):
    barrier.wait()
    try:
        sock.connect((to, port))
    except OSError:
        pass


def established(sock):
    try:
        sock.getpeername()
        return True
    except OSError:
        return False


def beside(port):
    """A listener of its own at the other spelling of localhost, and a connection to it."""
    listener = reusing(socket.AF_INET6)
    listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    listener.bind(("::1", port))
    listener.listen()
    caller = socket.create_connection(("::1", port))
    return [listener, caller, listener.accept()[0]]


def half(port):
    """Half a request, straight to the worker."""
    sock = socket.create_connection(("127.0.0.1", port))
    sock.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhalf")
    return [sock]


def failed(port):
    """A socket whose second connect() has failed after the hook, since no local port was left to it."""
    blocker, sock = socket.socket(), socket.socket()
    blocker.bind(("127.0.0.1", 0))
    taken = blocker.getsockname()[1]
    sock.setsockopt(socket.IPPROTO_IP, IP_LOCAL_PORT_RANGE, struct.pack("I", taken << 16 | taken))
    first = sock.connect_ex(("127.0.0.1", port))
    second = sock.connect_ex(("127.0.0.1", port))
    if (first, second) != (errno.EADDRNOTAVAIL, errno.EADDRNOTAVAIL):
        raise SystemExit("connect: %d, %d" % (first, second))
    return [blocker, sock]


def unrouted(port):
    """A socket whose connect() has failed for want of a route, at a source address that is not of this host."""
    sock = socket.socket()
    sock.setsockopt(socket.IPPROTO_IP, 15, 1)
    sock.bind(("192.0.2.1", 0))
    sock.settimeout(2)
    result = sock.connect_ex(("127.0.0.1", port))
    if result == 0:
        raise SystemExit("connected")
    return [sock]


def deferred(port):
    """A socket whose SYN goes out with its first write, which never comes."""
    sock = socket.socket()
    sock.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1)
    sock.connect(("127.0.0.1", port))
    return [sock]


def full(port):
    """Connections that are over, from sockets in which the kernel has no room left (net.core.optmem_max): any user may give a
    socket so many keys of TCP MD5, for peers with which it has nothing to do."""
    for _ in range(3):
        sock, count = socket.socket(), 0
        try:
            while True:
                peer = struct.pack("HH4s", socket.AF_INET, 0, bytes([10, *count.to_bytes(3, "big")]))
                key = struct.pack("BBHi", 0, 0, 1, 0) + b"k".ljust(80, b"\0")
                sock.setsockopt(socket.IPPROTO_TCP, TCP_MD5SIG, peer.ljust(128, b"\0") + key)
                count += 1
        except OSError as error:
            if error.errno != errno.ENOMEM:
                raise
        sock.connect(("127.0.0.1", port))
        sock.close()
    return []


KEPT = {name: act for name, act in globals().items() if callable(act)}[sys.argv[1]](int(sys.argv[2]))
print("ready", flush=True)
sys.stdin.read()

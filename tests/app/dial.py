"""The small ends of the suite `steer`: servers that say who they are, callers that say what they saw.

    dial.py serve HOST PORT SAY [WORD..] answers SAY to whoever connects (TCP) or asks (UDP), keeps connections open, but
                                         resets those on which `reset` is asked for; with `mptcp` by Multipath TCP, with
                                         `reuseport` beside other processes, with `memory=MB` in a process of that size
    dial.py dial '[JOB, ...]'            does the jobs in order, prints what each saw as a JSON list
    dial.py hold '[JOB, ...]'            the same, and keeps the connections open until its input ends

A job is a JSON object; dial.rs says what may stand in it.
"""

import ctypes
import errno
import json
import select
import selectors
import socket
import struct
import sys
import time

import uring

IP_FREEBIND = 15
IP_LOCAL_PORT_RANGE = 51
TCP_FASTOPEN_CONNECT = 30
IPPROTO_MPTCP = 262
LIMIT = 5.0
KEPT = []


def serve(host, port, say, *words):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    tcp = socket.socket(family, socket.SOCK_STREAM, IPPROTO_MPTCP if "mptcp" in words else 0)
    udp = socket.socket(family, socket.SOCK_DGRAM)
    for megabytes in (int(word[7:]) for word in words if word.startswith("memory=")):
        # Written to: the kernel takes long to give it back, and accepts connections meanwhile.
        KEPT.append(bytearray(b"x") * (megabytes << 20))
    for sock in (tcp, udp):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if "reuseport" in words:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind((host, int(port)))
        sock.setblocking(False)
    tcp.listen(256)
    selector = selectors.DefaultSelector()
    selector.register(tcp, selectors.EVENT_READ)
    selector.register(udp, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if key.fileobj is tcp:
                caller, _ = tcp.accept()
                try:
                    caller.send(say.encode() + b"\n")
                except OSError:
                    caller.close()
                    continue
                selector.register(caller, selectors.EVENT_READ)
            elif key.fileobj is udp:
                _, address = udp.recvfrom(16)
                udp.sendto(say.encode(), address)
            elif ended(key.fileobj):
                selector.unregister(key.fileobj)
                key.fileobj.close()


def ended(sock):
    try:
        asked = sock.recv(4096)
    except OSError:
        return True
    if asked == b"reset\n":
        reset_at_close(sock)
    return asked in (b"", b"reset\n")


def reset_at_close(sock):
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def prepared(job):
    """A socket as the job wants it, and the address to dial."""
    kind = socket.SOCK_DGRAM if job.get("udp") else socket.SOCK_STREAM
    family, _, _, _, address = socket.getaddrinfo(job["to"], job["port"], type=kind)[0]
    sock = socket.socket(family, kind, IPPROTO_MPTCP if job.get("mptcp") else 0)
    sock.settimeout(LIMIT)
    if job.get("v6only"):
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    if job.get("freebind"):
        # An address that is not of this host: connect() fails when it looks for a route, which is after the hook.
        sock.setsockopt(socket.IPPROTO_IP, IP_FREEBIND, 1)
    if job.get("source"):
        sock.bind((job["source"], job.get("source_port", 0)))
    if job.get("device"):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, job["device"].encode())
    if job.get("fastopen"):
        sock.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1)
    return sock, address


def connect(sock, address, job):
    """What connect() said, and what came of it later."""
    seen = {"connect": 0, "later": 0}
    # With a time limit Python would make the socket non-blocking behind our back.
    sock.setblocking(not job.get("nonblocking"))
    if job.get("via") == "sendto":
        # There is no connect(): the first write makes the connection.
        try:
            sock.sendto((job.get("ask") or "").encode() + b"\n", socket.MSG_FASTOPEN, address)
        except OSError as error:
            seen["connect"] = error.errno
    elif job.get("via"):
        seen["connect"] = -uring.connect(sock, address, job["via"])
    elif job.get("nonblocking"):
        seen["connect"] = sock.connect_ex(address)
        if seen["connect"] == errno.EINPROGRESS:
            select.select([], [sock], [], LIMIT)
            seen["later"] = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    else:
        seen["connect"] = sock.connect_ex(address)
    sock.settimeout(LIMIT)
    return seen


def answer(sock, seen, job):
    """Completes what was seen with the peer's name and its answer."""
    failed = seen["later"] or (seen["connect"] not in (0, errno.EINPROGRESS))
    if not failed:
        # With TCP_FASTOPEN_CONNECT there is no peer before the first write.
        peer = None if job.get("fastopen") else sock.getpeername()
        if job.get("told"):
            sys.stdin.readline()
        if job.get("ask") and job.get("via") != "sendto":
            sock.sendall(job["ask"].encode() + b"\n")
        text = b""
        while not text.endswith(b"\n"):
            part = sock.recv(16)
            text += part or b"\n"
        seen["peer"] = "%s %d" % (peer or sock.getpeername())[:2]
        words = [int(word) for word in text.split()] or [0]
        seen["answer"] = words[0]
        if len(words) == 3:
            seen["pid"], seen["cold"] = words[1], bool(words[2])
    return seen


def once(job):
    sock, address = prepared(job)
    if job.get("udp"):
        sock.connect(address)
        sock.send(b"?")
        return {"connect": 0, "later": 0, "peer": "%s %d" % sock.getpeername()[:2], "answer": int(sock.recv(16))}
    begun = time.monotonic()
    seen = connect(sock, address, job)
    seen["ms"] = (time.monotonic() - begun) * 1000
    try:
        answer(sock, seen, job)
    except OSError as error:
        seen["later"] = error.errno or errno.ETIMEDOUT
    end(sock, job)
    return seen


def end(sock, job):
    if job.get("keep"):
        KEPT.append(sock)
    elif job.get("reset"):
        reset_at_close(sock)
        sock.close()
    else:
        sock.close()


def elsewhere(job):
    """One socket, connected, taken apart (AF_UNSPEC), and connected to where `then` says."""
    sock, address = prepared(job)
    first = answer(sock, connect(sock, address, job), job)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.connect(sock.fileno(), struct.pack("H14x", socket.AF_UNSPEC), 16):
        raise OSError(ctypes.get_errno(), "connect(AF_UNSPEC)")
    second = answer(sock, connect(sock, (job["to"], job["then"]), job), job)
    sock.close()
    return [first, second]


def retried(job):
    """One socket whose connect() fails after the hook, since no local port is left to it; then it may have any."""
    blocker, (sock, address) = socket.socket(), prepared(job)
    blocker.bind(("127.0.0.1", 0))
    port = blocker.getsockname()[1]
    sock.setsockopt(socket.IPPROTO_IP, IP_LOCAL_PORT_RANGE, struct.pack("I", port << 16 | port))
    first = connect(sock, address, job)
    sock.setsockopt(socket.IPPROTO_IP, IP_LOCAL_PORT_RANGE, struct.pack("I", 0))
    second = answer(sock, connect(sock, address, job), job)
    sock.close()
    return [first, second]


def silent(job):
    """A socket that is connected and then left alone."""
    sock, address = prepared(job)
    KEPT.append(sock)
    return [connect(sock, address, job)]


def until_told():
    while not select.select([sys.stdin], [], [], 0)[0]:
        yield


def main(mode, *words):
    if mode == "serve":
        serve(*words)
    seen = []
    for job in json.loads(words[0]):
        for _ in range(job["times"]) if job.get("times") else until_told():
            if job.get("odd"):
                seen += {"elsewhere": elsewhere, "retried": retried, "silent": silent}[job["odd"]](job)
            else:
                seen.append(once(job))
            time.sleep(job.get("pause_ms", 0) / 1000)
    print(json.dumps(seen), flush=True)
    if mode == "hold":
        sys.stdin.read()


main(*sys.argv[1:])

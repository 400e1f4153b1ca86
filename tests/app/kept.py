"""The ends of kept-alive connections, one a line: `kept.py worker ADDRESS PORT`, `kept.py caller ADDRESS PORT HOW`."""
import os, select, socket, sys, threading, time

# linux/tcp.h
TCP_REPAIR, TCP_REPAIR_QUEUE, TCP_QUEUE_SEQ = 19, 20, 21
RECEIVED, SENT = 1, 2


def say(*words):
    print(*words, flush=True)


def numbers(sock):
    """Sequence numbers after what was received and sent so far."""
    sock.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
    found = []
    for queue in (RECEIVED, SENT):
        sock.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR_QUEUE, queue)
        found.append(sock.getsockopt(socket.IPPROTO_TCP, TCP_QUEUE_SEQ) & 0xFFFFFFFF)
    # Without a window probe.
    sock.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, -1)
    return found


def serve(sock, port):
    """Answers `ask` at once, `twice` once more a little later, and `wait` never."""
    try:
        while asked := sock.recv(100):
            if asked != b"wait\n":
                sock.sendall(b"answer\n")
            if asked == b"twice\n":
                time.sleep(0.3)
                sock.sendall(b"more\n")
            say("told", port, *numbers(sock))
        say("ended", port)
    except ConnectionResetError:
        say("reset", port)


def worker(address, port):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.create_server((address, port), family=family, backlog=64)
    say("ready")
    while True:
        sock, peer = listener.accept()
        threading.Thread(target=serve, args=(sock, peer[1]), daemon=True).start()


def ask(sock, what):
    sock.sendall(what)
    if what != b"wait\n":
        sock.recv(100)


def wait_otherwise(sock, how):
    """Whoever waits not in epoll_wait; returns if `how` is none of these."""
    if how == "recv":
        sock.recv(1)
    elif how == "poll":
        poll = select.poll()
        poll.register(sock, select.POLLIN)
        poll.poll()
    elif how == "nobody":
        time.sleep(1000)


def caller(address, port, how):
    sock = socket.create_connection((address, port))
    say("port", sock.getsockname()[1])
    ask(sock, b"ask\n")
    if how in ("again", "wait", "twice"):
        # For the worker to tell one from the other.
        time.sleep(0.1)
        ask(sock, {"again": b"ask\n", "wait": b"wait\n", "twice": b"twice\n"}[how])
    say("ready")
    wait_otherwise(sock, how)
    epoll = select.epoll()
    epoll.register(sock, select.EPOLLET | (select.EPOLLOUT if how == "output" else select.EPOLLIN))
    if how == "output":
        epoll.poll()
    if how == "twin":
        other = select.epoll()
        other.register(sock, select.EPOLLIN)
    if how == "threads":
        threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
    if how == "dup":
        os.dup(sock.fileno())
    if how == "fork" and os.fork() == 0:
        time.sleep(1000)
    while how == "busy":
        pass
    if how == "twice":
        # Sees that there is more, and does not read it.
        epoll.poll()
    epoll.poll()
    say("error", sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))


if __name__ == "__main__":
    role, address, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
    worker(address, port) if role == "worker" else caller(address, port, sys.argv[4])

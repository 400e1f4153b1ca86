"""Other people's sockets: `crowd.py OPEN WAITING`, so many open connections (two sockets each) and TIME_WAIT sockets."""
import os, socket, sys, time

# Two descriptors each, below the usual limit of a process.
MOST_OPEN = 8000
# Below the number of ephemeral ports.
MOST_WAITING = 20000


def pairs(address, count):
    listener = socket.create_server((address, 7000), backlog=4096)
    for _ in range(count):
        caller = socket.create_connection((address, 7000))
        yield listener.accept()[0], caller


def shares(total, most):
    while total > 0:
        yield min(total, most)
        total -= most


def apart(role, address, count, done):
    if os.fork() == 0:
        kept = list(pairs(address, count)) if role == "open" else [end.close() for pair in pairs(address, count) for end in pair]
        os.write(done, b".")
        time.sleep(1000)
        del kept


if __name__ == "__main__":
    most = 2 * int(sys.argv[2]) + 1000
    with open("/proc/sys/net/ipv4/tcp_max_tw_buckets", "w") as limit:
        limit.write(str(most))
    wait, done = os.pipe()
    parts = 0
    for role, total, size in (("open", int(sys.argv[1]), MOST_OPEN), ("waiting", int(sys.argv[2]), MOST_WAITING)):
        for count in shares(total, size):
            apart(role, f"127.0.{parts + 1}.1", count, done)
            parts += 1
    for _ in range(parts):
        os.read(wait, 1)
    print("ready", flush=True)
    time.sleep(1000)

"""A small worker for the process managers' suite: answers every connection with its process id.

Started as `managed.py PORT DIRECTORY`. What is wrong with it is written in DIRECTORY/PORT.fault, if there is such a file:
`deaf` (ignores SIGTERM), `slow` (needs a second to end), `crash` (ends at once), `child` (leaves a child with its listener).
"""

import os
import signal
import socket
import sys
import time

PORT, DIRECTORY = int(sys.argv[1]), sys.argv[2]


def fault():
    try:
        with open("%s/%d.fault" % (DIRECTORY, PORT), encoding="utf-8") as file:
            return file.read().strip()
    except FileNotFoundError:
        return ""


def slowly(_number, _frame):
    time.sleep(1)
    os._exit(0)


print("begun", flush=True)
FAULT = fault()
if FAULT == "crash":
    sys.exit("fault: crash at start")
if FAULT == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if FAULT == "slow":
    signal.signal(signal.SIGTERM, slowly)
listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind(("127.0.0.1", PORT))
if FAULT == "child" and os.fork() == 0:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(1000)
listener.listen()
while True:
    connection, _ = listener.accept()
    # More than a line, so that a log grows.
    print("answered", "." * 3000, flush=True)
    connection.sendall(b"%d\n" % os.getpid())
    connection.close()

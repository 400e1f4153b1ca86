"""The test app as a pre-fork server has it: a master opens the listener, and three children accept from it.

Started as `prefork.py --port=8000`, with the environment of worker.py. The master starts another child for each that
ends. Children whose master has ended go on serving.
"""

import asyncio
import ctypes
import os
import signal
import time

import worker

CHILDREN = 3
PR_SET_NAME = 15


def start(app, listener):
    pid = os.fork()
    if pid == 0:
        # Tells children from their master, in /proc/PID/comm.
        ctypes.CDLL(None).prctl(PR_SET_NAME, b"child", 0, 0, 0)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        asyncio.run(worker.serve(app, listener))
    return pid


def main():
    time.sleep(worker.IMPORT_SECONDS)
    app = worker.Worker()
    listener = worker.listening_socket(worker.PORT)
    for _ in range(CHILDREN):
        start(app, listener)
    while True:
        os.wait()
        start(app, listener)


main()

"""Kazoo, as others run it: holds barriers, is a party of double ones, and reads server sets.

    zoo.py SERVERS SECONDS hold PATH            holds a plain barrier until SIGUSR1, then takes it away
    zoo.py SERVERS SECONDS wait PATH            waits for a plain barrier
    zoo.py SERVERS SECONDS double PATH PARTIES  enters a double barrier, and leaves it after SIGUSR1
    zoo.py SERVERS SECONDS sets PATH            prints the members of a server set, each a JSON object in a line

SECONDS: how long its session outlives its connection. What has been done is printed, a word in a line.
"""

import json
import signal
import sys
import threading

from kazoo.client import KazooClient
from kazoo.recipe.barrier import Barrier, DoubleBarrier
from kazoo.retry import KazooRetry


def say(word):
    print(word, flush=True)


def main():
    servers, seconds, what, path, *more = sys.argv[1:]
    told = threading.Event()
    signal.signal(signal.SIGUSR1, lambda *_: told.set())
    retry = KazooRetry(max_tries=-1, max_delay=1)
    zk = KazooClient(hosts=servers, timeout=float(seconds), connection_retry=retry, command_retry=KazooRetry(max_tries=-1))
    zk.start(timeout=60)
    if what == "hold":
        barrier = Barrier(zk, path)
        barrier.create()
        say("held")
        told.wait()
        say("open" if barrier.remove() else "was open")
    elif what == "wait":
        say("waiting")
        Barrier(zk, path).wait()
        say("open")
    elif what == "double":
        barrier = DoubleBarrier(zk, path, int(more[0]))
        say("node " + barrier.node_name)
        barrier.enter()
        say("entered" if barrier.participating else "failed")
        told.wait()
        barrier.leave()
        say("left")
    elif what == "sets":
        for name in sorted(zk.get_children(path)):
            data, stat = zk.get(path + "/" + name)
            member = json.loads(data)
            assert name.startswith("member_") and stat.ephemeralOwner, name
            assert isinstance(member["serviceEndpoint"]["port"], int), member
            assert member["additionalEndpoints"] is not None and member["status"] == "ALIVE", member
            say(json.dumps(member, sort_keys=True))
        say("end")
    zk.stop()


main()

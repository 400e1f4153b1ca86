"""Server sets, as anybody reads them: `serversets.py CONNECT NODE ...` prints, as JSON, the members of each set by their
node's name: what is written in it, and `ephemeral`.
"""

import json
import sys

from kazoo.client import KazooClient
from kazoo.exceptions import NoNodeError


def members(client, path):
    found = {}
    try:
        names = client.get_children(path)
    except NoNodeError:
        return found
    for name in names:
        try:
            data, stat = client.get(path + "/" + name)
        except NoNodeError:
            continue
        found[name] = {"data": json.loads(data), "ephemeral": stat.ephemeralOwner != 0}
    return found


def main(connect, *paths):
    client = KazooClient(hosts=connect, read_only=False)
    client.start()
    print(json.dumps({path: members(client, path) for path in paths}))
    client.stop()


main(*sys.argv[1:])

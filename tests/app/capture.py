"""Writes down the handshakes, requests and ends of the TCP connections to some ports, seen on the loopback device.

    capture.py FIRST LAST MARK FILE      ports FIRST to LAST; packets with this socket mark are left out

One line an event, times in ns of CLOCK_MONOTONIC, C the caller's port, W the worker's:

    S TIME C W SEQ      a SYN; SEQ tells one that is sent again from a new connection of the same ports
    E TIME C W          the SYN was answered
    Q TIME C W ID       the first packet of a request with an X-Request-Id
    A TIME C W          data from the worker
    F TIME C W          FIN from the worker's end
    R TIME C W          RST from the worker's end

The first line is `ready`, the last one `D LOST DRIFT`: packets that were missed, and by how many ns the time of day was
set meanwhile, for that is the clock of the kernel's time stamps.
"""

import ctypes
import re
import select
import signal
import socket
import struct
import sys
import time

SO_TIMESTAMPNS = 35
SO_ATTACH_FILTER = 26
SO_RCVBUFFORCE = 33
SOL_PACKET, PACKET_STATISTICS = 263, 6
ETH_P_ALL = 3
FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16
REQUEST_ID = re.compile(rb"\r\nX-Request-Id: ([^\r\n]+)\r\n", re.IGNORECASE)

# Classic BPF. "Ancillary data" is what the kernel knows of a packet beside its bytes.
LOAD_WORD, LOAD_BYTE, LOAD_HALF_OF_TCP, LOAD_BYTE_OF_TCP, SKIP_IP_HEADER = 0x20, 0x30, 0x48, 0x50, 0xB1
IS, IS_MORE_THAN, IS_AT_LEAST, HAS_BIT, RETURN = 0x15, 0x25, 0x35, 0x45, 0x06
PACKET_TYPE, SOCKET_MARK = 0xFFFFF000 + 4, 0xFFFFF000 + 20
PACKET_OUTGOING = 4
SOURCE, DESTINATION, FLAGS = 0, 2, 13


def attach(sock, first, last, mark):
    """Has the kernel leave out what is of no interest: it would cost the load's own time."""
    program = [
        # Each packet passes the loopback device twice; going out, it is still in its sender's system call.
        (LOAD_WORD, PACKET_TYPE), (IS, PACKET_OUTGOING, "next", "drop"),
        (LOAD_WORD, SOCKET_MARK), (IS, mark, "drop", "next"),
        (LOAD_BYTE, 9), (IS, socket.IPPROTO_TCP, "next", "drop"),
        (SKIP_IP_HEADER, 0),
        # Acknowledgements alone say nothing.
        (LOAD_BYTE_OF_TCP, FLAGS), (HAS_BIT, FIN | SYN | RST | PSH, "next", "drop"),
        (LOAD_HALF_OF_TCP, SOURCE), (IS_AT_LEAST, first, "next", "to"), (IS_MORE_THAN, last, "to", "keep"),
        "to",
        (LOAD_HALF_OF_TCP, DESTINATION), (IS_AT_LEAST, first, "next", "drop"), (IS_MORE_THAN, last, "drop", "keep"),
        "keep",
        (RETURN, 65535),
        "drop",
        (RETURN, 0),
    ]
    text, labels = [], {}
    for line in program:
        if isinstance(line, str):
            labels[line] = len(text)
        else:
            text.append(line)
    code = b""
    for at, (operation, number, *targets) in enumerate(text):
        jumps = [0 if target == "next" else labels[target] - at - 1 for target in targets] or [0, 0]
        code += struct.pack("HBBI", operation, *jumps, number)
    buffer = ctypes.create_string_buffer(code)
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HL", len(text), ctypes.addressof(buffer)))


def offset():
    """By how many ns CLOCK_REALTIME is ahead of CLOCK_MONOTONIC: the quickest of some looks."""
    looks = []
    for _ in range(100):
        before, real, after = time.monotonic_ns(), time.time_ns(), time.monotonic_ns()
        looks.append((after - before, real - (before + after) // 2))
    return min(looks)[1]


def line(packet, first, last):
    """What a packet says, without its time."""
    ip = (packet[0] & 15) * 4
    source, destination, seq = struct.unpack_from("!HHI", packet, ip)
    flags = packet[ip + 13]
    from_worker = first <= source <= last
    ports = "%d %d" % ((destination, source) if from_worker else (source, destination))
    if from_worker:
        for bit, kind in ((RST, "R"), (SYN, "E"), (FIN, "F"), (PSH, "A")):
            if flags & bit:
                # What ends with its answer is an answer first.
                return ["A", ports] if kind == "F" and flags & PSH else [kind, ports]
    elif flags & SYN:
        return ["S", ports, str(seq)]
    elif flags & PSH:
        found = REQUEST_ID.search(packet)
        return found and ["Q", ports, found[1].decode()]
    return None


def main(first, last, mark, path):
    first, last, mark = int(first), int(last), int(mark, 0)
    # No protocol until the filter is there: nothing else may be in the queue.
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
    attach(sock, first, last, mark)
    sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 << 20)
    sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
    sock.bind(("lo", ETH_P_ALL))
    sock.setblocking(False)
    # The kernel switches its time stamps on a little later.
    time.sleep(0.1)
    ahead = offset()
    ending, told = socket.socketpair()
    told.setblocking(False)
    signal.set_wakeup_fd(told.fileno())
    signal.signal(signal.SIGTERM, lambda *_: None)
    with open(path, "w", encoding="ascii", buffering=1 << 16) as file:
        file.write("ready\n")
        file.flush()
        over = False
        while not over:
            # Seldom: many packets at a time cost less.
            over = bool(select.select([ending], [], [], 0.05)[0])
            take(sock, file, ahead, first, last)
        _, lost = struct.unpack("II", sock.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))
        file.write("D %d %d\n" % (lost, offset() - ahead))


def take(sock, file, ahead, first, last):
    """Writes down what has come in."""
    while True:
        try:
            packet, extra, _, _ = sock.recvmsg(65536, 64)
        except BlockingIOError:
            return
        seconds, nanoseconds = struct.unpack("qq", extra[0][2][:16])
        said = line(packet, first, last)
        if said:
            said.insert(1, str(seconds * 1_000_000_000 + nanoseconds - ahead))
            file.write(" ".join(said) + "\n")


main(*sys.argv[1:])

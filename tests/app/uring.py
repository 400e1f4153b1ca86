"""connect() by io_uring, without its library (`linux/io_uring.h`)."""

import ctypes
import mmap
import os
import socket
import struct

SYS_SETUP, SYS_ENTER = 425, 426
SETUP_SQPOLL = 2
SQE_ASYNC = 16
ENTER_GETEVENTS, ENTER_SQ_WAKEUP = 1, 2
OP_CONNECT = 16
OFF_SQES = 0x10000000
SIZE_SQE, SIZE_CQE = 64, 16

# Who makes the connection: its caller within the system call, a worker thread of the ring, or the thread that polls it.
FLAGS = {"uring": (0, 0), "uring-async": (0, SQE_ASYNC), "uring-sqpoll": (SETUP_SQPOLL, 0)}

LIBC = ctypes.CDLL(None, use_errno=True)


def call(number, *arguments):
    result = LIBC.syscall(number, *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), "io_uring")
    return result


def connect(sock, address, way):
    """What came of it: 0 or -errno."""
    setup_flags, entry_flags = FLAGS[way]
    params = bytearray(120)
    # Its flags, and after how many ms of nothing to do a polling thread goes to sleep.
    struct.pack_into("=I4xI", params, 8, setup_flags, 1000)
    ring = call(SYS_SETUP, 4, (ctypes.c_char * len(params)).from_buffer(params))
    try:
        return submit(ring, params, (sock.fileno(), encoded(sock, address)), entry_flags, setup_flags)
    finally:
        os.close(ring)


def submit(ring, params, what, entry_flags, setup_flags):
    entries, results = struct.unpack_from("=2I", params, 0)
    _, tail, _, _, _, _, array = struct.unpack_from("=7I", params, 40)
    cqes = struct.unpack_from("=6I", params, 80)[5]
    rings = mmap.mmap(ring, max(array + 4 * entries, cqes + SIZE_CQE * results), offset=0)
    queue = mmap.mmap(ring, SIZE_SQE * entries, offset=OFF_SQES)
    number, to = what
    kept = ctypes.create_string_buffer(to, len(to))
    place = ctypes.addressof(kept)
    struct.pack_into("=2BHiQQ", queue, 0, OP_CONNECT, entry_flags, 0, number, len(to), place)
    struct.pack_into("=I", rings, array, 0)
    struct.pack_into("=I", rings, tail, 1)
    wake = ENTER_SQ_WAKEUP if setup_flags & SETUP_SQPOLL else 0
    call(SYS_ENTER, ring, 1, 1, ENTER_GETEVENTS | wake, None, 0)
    return struct.unpack_from("=Qi", rings, cqes)[1]


def encoded(sock, address):
    """`struct sockaddr_in` or `struct sockaddr_in6`."""
    head = struct.pack("=H", sock.family) + struct.pack("!H", address[1])
    if sock.family == socket.AF_INET6:
        return head + bytes(4) + socket.inet_pton(socket.AF_INET6, address[0]) + bytes(4)
    return head + socket.inet_aton(address[0]) + bytes(8)

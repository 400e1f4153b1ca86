"""A caller whose connection another program has put into a sockmap, at both ends, as service meshes do: what either end writes
goes straight to the other end's socket, past the loopback device and past TCP.

    sockmap.py PORT SECONDS      asks the worker of that port for an answer that takes so long, and prints what comes of it
"""

import ctypes
import os
import select
import socket
import struct
import sys

SYS_PIDFD_OPEN, SYS_PIDFD_GETFD, SYS_BPF = 434, 438, 321
# linux/bpf.h
MAP_CREATE, MAP_UPDATE, PROG_LOAD, PROG_ATTACH = 0, 2, 5, 8
MAP_TYPE_SOCKMAP, PROG_TYPE_SK_MSG, SK_MSG_VERDICT, MSG_REDIRECT_MAP = 15, 16, 7, 60

libc = ctypes.CDLL(None, use_errno=True)
SIZE = 128


def call(number, *args):
    result = libc.syscall(number, *args)
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result


def bpf(command, attributes):
    attributes = ctypes.create_string_buffer(attributes.ljust(SIZE, b"\0"), SIZE)
    return call(SYS_BPF, command, attributes, SIZE)


def program(table, port):
    """Whatever is written at the worker's port goes to the socket with key 0, the caller's; all else to the worker's."""
    def instruction(code, registers, offset, value):
        return struct.pack("<BBhi", code, registers, offset, value)
    code = b"".join([
        instruction(0x61, 0x13, 64, 0),  # r3 = ((struct sk_msg_md *)r1)->local_port
        instruction(0x15, 0x03, 2, port),  # if r3 == port: skip two
        instruction(0xB7, 0x03, 0, 1),  # r3 = 1
        instruction(0x05, 0x00, 1, 0),  # skip one
        instruction(0xB7, 0x03, 0, 0),  # r3 = 0
        instruction(0x18, 0x12, 0, table),  # r2 = table
        instruction(0x00, 0x00, 0, 0),
        instruction(0xB7, 0x04, 0, 1),  # r4 = BPF_F_INGRESS
        instruction(0x85, 0x00, 0, MSG_REDIRECT_MAP),
        instruction(0x95, 0x00, 0, 0),  # return r0
    ])
    code, licence = ctypes.create_string_buffer(code, len(code)), ctypes.create_string_buffer(b"GPL")
    return bpf(PROG_LOAD, struct.pack(
        "<IIQQ", PROG_TYPE_SK_MSG, len(code) // 8, ctypes.addressof(code), ctypes.addressof(licence)))


def others_end(pid, own):
    """The socket at the other end of `own`, which the process has open."""
    process = call(SYS_PIDFD_OPEN, pid, 0)
    for fd in os.listdir("/proc/%d/fd" % pid):
        try:
            found = socket.socket(fileno=call(SYS_PIDFD_GETFD, process, int(fd), 0))
            if found.getpeername() == own.getsockname():
                return found
            found.close()
        except OSError:
            continue
    raise SystemExit("the worker does not have the connection")


def listens(port):
    """A process that listens at a port of this host, by its workers' answer."""
    sock = socket.create_connection(("127.0.0.1", port))
    sock.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    head = b""
    while part := sock.recv(4096):
        head += part
    return int(head.split(b"X-Pid: ")[1].split(b"\r\n")[0])


def main(port, seconds):
    pid = listens(port)
    caller = socket.create_connection(("127.0.0.1", port))
    table = bpf(MAP_CREATE, struct.pack("<IIIII", MAP_TYPE_SOCKMAP, 4, 4, 2, 0))
    bpf(PROG_ATTACH, struct.pack("<III", table, program(table, port), SK_MSG_VERDICT))
    for _ in range(100):
        try:
            worker = others_end(pid, caller)
            break
        except SystemExit:
            # It has not accepted it yet.
            select.select([], [], [], 0.02)
    for key, sock in enumerate([caller, worker]):
        key, value = ctypes.create_string_buffer(struct.pack("<I", key), 4), ctypes.create_string_buffer(4)
        struct.pack_into("<I", value, 0, sock.fileno())
        bpf(MAP_UPDATE, struct.pack("<IIQQQ", table, 0, ctypes.addressof(key), ctypes.addressof(value), 0))
    worker.close()
    epoll = select.epoll()
    epoll.register(caller, select.EPOLLIN)
    caller.sendall(b"GET /?slow=%s HTTP/1.1\r\nHost: x\r\n\r\n" % seconds.encode())
    print("asked", flush=True)
    epoll.poll()
    try:
        print(caller.recv(12).decode(), flush=True)
    except OSError as error:
        print(error, flush=True)


main(int(sys.argv[1]), sys.argv[2])

"""Answers that take their time, for worker.py: with a pause in the middle, server-sent events, WebSockets.

Each is a function of the worker, tornado's request and the request's id, and writes the journal as worker.py does.
"""

import asyncio
import base64
import hashlib
import struct
import urllib.parse

from tornado.httputil import HTTPHeaders, ResponseStartLine
from tornado.iostream import StreamClosedError

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
OK = ResponseStartLine("HTTP/1.1", 200, "OK")


def begin(worker, request, request_id):
    """The coroutine that answers, or None: an ordinary request."""
    query = dict(urllib.parse.parse_qsl(request.query))
    if request.path.startswith("/paused/"):
        return paused(worker, request, request_id, query)
    if request.path == "/events":
        return events(worker, request, request_id, query)
    if request.path == "/socket":
        return socket(worker, request, request_id)
    return None


def headers(worker, request_id, **more):
    fields = HTTPHeaders(worker.names())
    fields["X-Request-Id"] = request_id
    for name, value in more.items():
        fields[name.replace("_", "-")] = value
    return fields


async def paused(worker, request, request_id, query):
    """Half of the body, a pause, the other half: chunked, or with a Content-Length."""
    size = int(query["size"])
    fields = headers(worker, request_id, Content_Type="text/plain")
    if request.path == "/paused/length":
        fields["Content-Length"] = str(2 * size)
    connection = request.connection
    try:
        # Without a length tornado sends it chunked.
        await connection.write_headers(OK, fields, b"a" * size)
        await asyncio.sleep(float(query["pause"]))
        await connection.write(b"b" * size)
        connection.finish()
        worker.note("E", request_id)
    except StreamClosedError:
        worker.note("A", request_id)


async def events(worker, request, request_id, query):
    """An event at once, then one every so often, until the caller goes away."""
    fields = headers(worker, request_id, Content_Type="text/event-stream", X_Accel_Buffering="no")
    connection, number = request.connection, 0
    try:
        await connection.write_headers(OK, fields)
        while True:
            await connection.write(b"data: %d\n\n" % number)
            await asyncio.sleep(float(query["every"]))
            number += 1
    except StreamClosedError:
        worker.note("A", request_id)


async def socket(worker, request, request_id):
    """Echoes text frames of up to 125 bytes, until the caller goes away."""
    key = request.headers["Sec-WebSocket-Key"].encode()
    accept = base64.b64encode(hashlib.sha1(key + GUID).digest()).decode()
    fields = headers(worker, request_id, Upgrade="websocket", Connection="Upgrade", Sec_WebSocket_Accept=accept)
    stream = request.connection.detach()
    lines = ["HTTP/1.1 101 Switching Protocols", *("%s: %s" % field for field in fields.get_all())]
    try:
        await stream.write(("\r\n".join(lines) + "\r\n\r\n").encode())
        while True:
            opcode, length = struct.unpack("BB", await stream.read_bytes(2))
            mask = await stream.read_bytes(4)
            masked = await stream.read_bytes(length & 0x7F) if length & 0x7F else b""
            text = bytes(byte ^ mask[i % 4] for i, byte in enumerate(masked))
            await stream.write(struct.pack("BB", opcode, len(text)) + text)
    except StreamClosedError:
        worker.note("A", request_id)

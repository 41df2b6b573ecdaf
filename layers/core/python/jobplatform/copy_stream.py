"""COPY TO STDOUT at the speed of the socket.

pg8000 calls Python several times for every row. The stream of messages is regular, so it is read
here in large blocks, which are cut at what can only be the end of one row's message and the head of
the next one's; what is left over is cut in a loop that knows every message. That uses the
connection's `_sock`, `send_QUERY` and `message_types`, which are not public: the version of pg8000
is pinned, a contract test holds the names, and `copy_out` goes the public way when one is missing.
"""

import re
import struct
import time
from collections.abc import Callable
from typing import Any

import pg8000.core
import pg8000.native

Write = Callable[[bytes, int, bytes], None]
"""Takes a block of whole rows, how many they are, and the last of them."""

BLOCK_BYTES = 256 * 1024
# After a read that found little there is a pause, in which more comes together. The server sends
# 8 KiB at a time, and waking up for each costs both sides more than all else that is done here. A
# result that is small does not wait.
_LITTLE_BYTES = 128 * 1024
_PAUSE_SECONDS = 0.002
_SMALL_RESULT_BYTES = 256 * 1024
_length = struct.Struct(">I").unpack_from
_COPY_DATA, _READY = b"dZ"
# No text that PostgreSQL sends has a NUL, so this is the end of a row, and the head of the message
# of another one that is shorter than 64 KiB.
_BOUNDARY = b"\nd\0\0"
_cut = re.compile(_BOUNDARY + b"..", re.DOTALL).split
# CopyOutResponse and CopyDone carry nothing that is needed; pg8000's handler wants a stream.
_SILENT = b"Hc"


def copy_out(
    connection: pg8000.native.Connection, sql: str, write: Write, *, crlf: bool = False
) -> int:
    """Runs a COPY … TO STDOUT and gives its rows to `write` in blocks: the number of rows.

    A header counts as a row here. `crlf` ends each row with CR LF instead of LF. Raises what pg8000
    raises for errors of the server, at any time after rows were written. After any exception the
    connection is in the middle of something: close it.
    """
    ending = b"\r\n" if crlf else b"\n"
    if not is_fast(connection):
        return _copy_out_public(connection, sql, write, ending)
    connection.send_QUERY(sql)
    connection._sock.flush()
    read = connection._sock.read1
    context = pg8000.core.Context(sql)
    rows = received = 0
    pending = b""
    ready = False
    while not ready:
        block = read(BLOCK_BYTES)
        if not block:
            raise pg8000.native.InterfaceError("the server closed the connection during COPY")
        data = pending + block if pending else block
        end = len(data)
        written, count, last, position = _cut_rows(data, ending)
        pieces: list[bytes] = []
        append = pieces.append
        # A message: one byte of type, four of length that count themselves, the rest.
        while position + 5 <= end:
            following = position + 1 + _length(data, position + 1)[0]
            if following > end:
                break
            kind = data[position]
            if kind == _COPY_DATA:
                append(data[position + 5 : following])
            else:
                if kind not in _SILENT:
                    body = data[position + 5 : following]
                    connection.message_types[bytes((kind,))](body, context)
                ready = ready or kind == _READY
            position = following
        pending = data[position:]
        received += len(block)
        if pieces:
            written += _join(pieces, ending)
            count += len(pieces)
            last = pieces[-1]
        if count:
            rows += count
            write(written, count, last)
        if len(pending) > 5:
            # One message longer than a block: read the whole of it at once.
            missing = 1 + _length(pending, 1)[0] - len(pending)
            if missing > BLOCK_BYTES:
                pending += connection._sock.read(missing)
        if len(block) < _LITTLE_BYTES and received > _SMALL_RESULT_BYTES and not ready:
            time.sleep(_PAUSE_SECONDS)
    if context.error is not None:
        raise context.error
    return rows


def is_fast(connection: Any) -> bool:
    """Whether this pg8000 has the private parts that the fast way uses."""
    return all(
        hasattr(connection, name) for name in ("_sock", "send_QUERY", "message_types")
    ) and hasattr(connection._sock, "read1")


def _cut_rows(data: bytes, ending: bytes) -> tuple[bytes, int, bytes, int]:
    """Rows as one block, how many, the last one, and where the message after them begins.

    None at all unless the data begins with the message of a row and every one up to the last
    boundary is of a row shorter than 64 KiB.
    """
    end = data.rfind(_BOUNDARY)
    if end < 0 or not data.startswith(_BOUNDARY[1:]):
        return b"", 0, b"", 0
    rows: list[bytes] = _cut(data[5:end])
    count, last = len(rows), rows[-1]
    rows.append(b"")
    block = ending.join(rows)
    # A boundary can be in the head of a message of 166 MiB; then the last row is not as long as its
    # own head says. Any other message has a NUL in its head.
    if _length(data, end - len(last) - 4)[0] != len(last) + 5 or b"\0" in block:
        return b"", 0, b"", 0
    return block, count, last + b"\n", end + 1


def _join(pieces: list[bytes], ending: bytes) -> bytes:
    if ending == b"\n":
        return b"".join(pieces)
    return b"".join([piece[:-1] + ending for piece in pieces])


def _copy_out_public(
    connection: pg8000.native.Connection, sql: str, write: Write, ending: bytes
) -> int:
    class Stream:
        rows = 0

        def write(self, piece: bytes) -> None:
            self.rows += 1
            write(_join([piece], ending), 1, piece)

    stream = Stream()
    connection.run(sql, stream=stream)
    return stream.rows

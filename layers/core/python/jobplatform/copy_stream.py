"""COPY TO STDOUT at the speed of the socket.

pg8000 calls Python several times for every row. The stream of messages is regular, so it is read
here in large blocks and cut in one tight loop. That uses the connection's `_sock`, `send_QUERY` and
`message_types`, which are not public: the version of pg8000 is pinned, a contract test holds the
names, and `copy_out` goes the public way when one is missing.
"""

import struct
from collections.abc import Callable
from typing import Any

import pg8000.core
import pg8000.native

Write = Callable[[bytes, int, bytes], None]
"""Takes a block of whole rows, how many they are, and the last of them."""

BLOCK_BYTES = 256 * 1024
_length = struct.Struct(">I").unpack_from
_COPY_DATA, _READY = b"dZ"
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
    if not is_fast(connection):
        return _copy_out_public(connection, sql, write, crlf)
    connection.send_QUERY(sql)
    connection._sock.flush()
    read = connection._sock.read1
    context = pg8000.core.Context(sql)
    rows = 0
    pending = b""
    ready = False
    while not ready:
        block = read(BLOCK_BYTES)
        if not block:
            raise pg8000.native.InterfaceError("the server closed the connection during COPY")
        data = pending + block if pending else block
        end = len(data)
        position = 0
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
        if pieces:
            rows += len(pieces)
            write(_join(pieces, crlf), len(pieces), pieces[-1])
        if len(pending) > 5:
            # One message longer than a block: read the whole of it at once.
            missing = 1 + _length(pending, 1)[0] - len(pending)
            if missing > BLOCK_BYTES:
                pending += connection._sock.read(missing)
    if context.error is not None:
        raise context.error
    return rows


def is_fast(connection: Any) -> bool:
    """Whether this pg8000 has the private parts that the fast way uses."""
    return all(
        hasattr(connection, name) for name in ("_sock", "send_QUERY", "message_types")
    ) and hasattr(connection._sock, "read1")


def _join(pieces: list[bytes], crlf: bool) -> bytes:
    if crlf:
        return b"\r\n".join([piece[:-1] for piece in pieces]) + b"\r\n"
    return b"".join(pieces)


def _copy_out_public(
    connection: pg8000.native.Connection, sql: str, write: Write, crlf: bool
) -> int:
    class Stream:
        rows = 0

        def write(self, piece: bytes) -> None:
            self.rows += 1
            write(_join([piece], crlf), 1, piece)

    stream = Stream()
    connection.run(sql, stream=stream)
    return stream.rows

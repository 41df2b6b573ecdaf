"""The stream of a COPY, cut into rows: the same whatever comes together and whatever is in it."""

import io
import struct
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobplatform import copy_stream

_MOST_READS = 2_000


@pytest.fixture(autouse=True, scope="module")
def _no_pause() -> Iterator[None]:
    """Nothing comes together while one waits for these streams."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(copy_stream, "_PAUSE_SECONDS", 0)
        yield


def message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack(">I", len(body) + 4) + body


def row(text: bytes) -> bytes:
    return message(b"d", text + b"\n")


class Sock:
    """A server's answer that arrives in pieces of these sizes, one after the other and again."""

    def __init__(self, stream: bytes, sizes: list[int]) -> None:
        self._stream = io.BytesIO(stream)
        self._sizes = sizes
        self._reads = 0

    def read1(self, most: int) -> bytes:
        size = min(most, self._sizes[self._reads % len(self._sizes)])
        self._reads += 1
        return self._stream.read(size)

    def read(self, size: int) -> bytes:
        return self._stream.read(size)

    def flush(self) -> None:
        pass


class Connection:
    def __init__(self, sock: Sock) -> None:
        self._sock = sock
        self.seen: list[bytes] = []
        self.message_types: dict[bytes, Any] = {
            kind: lambda body, context, kind=kind: self.seen.append(kind)
            for kind in (b"N", b"C", b"Z")
        }

    def send_QUERY(self, sql: str) -> None:
        pass


def copied(
    rows: list[bytes],
    sizes: list[int],
    *,
    notices_before: set[int] | None = None,
    crlf: bool = False,
) -> tuple[bytes, int, list[bytes]]:
    stream = message(b"H", b"\0\0\x01\0\0")
    for number, text in enumerate(rows):
        if number in (notices_before or ()):
            stream += message(b"N", b"SNOTICE\0Mwith a line\nd\0\0")
        stream += row(text)
    stream += message(b"c", b"") + message(b"C", b"COPY 3\0") + message(b"Z", b"I")
    # A large stream byte by byte would take hours.
    least = len(stream) // _MOST_READS
    connection = Connection(Sock(stream, [max(size, least) for size in sizes]))
    out = io.BytesIO()
    counts: list[int] = []
    lasts: list[bytes] = []

    def write(block: bytes, count: int, last: bytes) -> None:
        out.write(block)
        counts.append(count)
        lasts.append(last)
        ended = last[:-1] + (b"\r\n" if crlf else b"\n")
        assert block.endswith(ended)

    total = copy_stream.copy_out(connection, "COPY", write, crlf=crlf)  # type: ignore[arg-type]
    assert total == sum(counts)
    assert connection.seen[-2:] == [b"C", b"Z"]
    return out.getvalue(), total, lasts


# What looks like the head of a message, without the NUL that no text has.
TEXT = st.one_of(
    st.sampled_from([b"", b"d", b"\nd", b'"a\nd\nd"', b"d\n", b"\n", "Ærøskøbing, 日本".encode()]),
    st.binary(max_size=300).map(lambda text: text.replace(b"\0", b"")),
    st.integers(0, 3 * 65_536).map(lambda size: b"x" * size),
)


@settings(max_examples=200, deadline=None)
@given(
    rows=st.lists(TEXT, max_size=30),
    sizes=st.lists(st.integers(1, 2 * copy_stream.BLOCK_BYTES), min_size=1, max_size=5),
    notices=st.sets(st.integers(0, 30), max_size=2),
    crlf=st.booleans(),
)
def test_rows_are_the_same_however_they_arrive(
    rows: list[bytes], sizes: list[int], notices: set[int], crlf: bool
) -> None:
    ending = b"\r\n" if crlf else b"\n"

    written, total, lasts = copied(rows, sizes, notices_before=notices, crlf=crlf)

    assert written == b"".join(text + ending for text in rows)
    assert total == len(rows)
    assert lasts[-1:] == [text + b"\n" for text in rows[-1:]]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6, 7, 11, 64])
def test_a_stream_in_small_pieces(size: int) -> None:
    rows = [b"1,a", b"", b'2,"b\nd"', b"d", b"3,c"]

    written, total, _ = copied(rows, [size])

    assert written == b'1,a\n\n2,"b\nd"\nd\n3,c\n'
    assert total == 5


@pytest.mark.parametrize("length", [0x0A64, 0x640A, 0x0A0A, 0x0064, 0x000A, 0xFFFF, 0x10000])
def test_a_length_that_looks_like_a_boundary(length: int) -> None:
    rows = [b"before", b"y" * (length - 5), b"after", b"end"]

    written, _, _ = copied(rows, [10**9])

    assert written == b"".join(text + b"\n" for text in rows)


def test_a_boundary_in_the_head_of_a_huge_row_is_none() -> None:
    """Its length is 0x0A640000: a row's end, `d` and two NUL."""
    head = b"d" + struct.pack(">I", 0x0A640000)
    data = row(b"one") + row(b"two") + head + b"x" * 100

    block, count, last, position = copy_stream._cut_rows(data, b"\n")

    assert (block, count, last, position) == (b"", 0, b"", 0)


def test_what_is_between_rows_and_no_row_is_not_taken_for_one() -> None:
    rows = [b"a", b"b", b"c", b"d"]

    for notices in ({0}, {1}, {3}, {1, 2}):
        assert copied(rows, [10**9], notices_before=notices)[0] == b"a\nb\nc\nd\n"

"""COPY read from the socket: the names of pg8000 it rests on, its bytes, and errors on the way."""

import threading
import uuid

import pg8000.native
import pytest

from jobplatform import copy_stream, database, jobs, settings, sqltext
from jobplatform.usecases import run_job
from tests.helpers import platform, reports, store
from tests.helpers.s3 import StrictS3

pytestmark = pytest.mark.usefixtures("templates")

LONG = 30_000_000
QUERIES = {
    "nothing": "SELECT 1 AS a WHERE false",
    "no columns": "SELECT FROM generate_series(1, 3)",
    "one row": "SELECT 1 AS a",
    "NULL and empty": "SELECT NULL AS a, '' AS b",
    "line ends in text": r"SELECT E'a\nb\r\nc' AS a, E'\r\n' AS b FROM generate_series(1, 3)",
    "more than a block": "SELECT n, repeat('ä', n % 500) AS a FROM generate_series(1, 20000) AS n",
    "a row as long as a block": f"SELECT repeat('x', {copy_stream.BLOCK_BYTES}) AS a, n"
    " FROM generate_series(1, 9) AS n",
    "rows longer than a block": f"SELECT n, repeat('y', {copy_stream.BLOCK_BYTES} * n + n) AS a"
    " FROM generate_series(1, 9) AS n",
}


def copied(
    connection: pg8000.native.Connection, query: str, *, header: bool = True, crlf: bool = False
) -> tuple[bytes, int]:
    """The bytes of a query, and the rows that the blocks said they had."""
    blocks: list[bytes] = []
    counts: list[int] = []

    def write(block: bytes, rows: int, last: bytes) -> None:
        assert block.endswith(last.removesuffix(b"\n") + (b"\r\n" if crlf else b"\n"))
        blocks.append(block)
        counts.append(rows)

    text = f"COPY ({query}) TO STDOUT (FORMAT csv, HEADER {str(header).lower()})"
    rows = copy_stream.copy_out(connection, text, write, crlf=crlf)
    assert rows == sum(counts)
    return b"".join(blocks), rows


def test_the_pinned_pg8000_has_the_private_names(session: pg8000.native.Connection) -> None:
    assert copy_stream.is_fast(session)


@pytest.mark.parametrize("name", ["_sock", "send_QUERY", "message_types"])
def test_a_pg8000_without_one_of_the_names_is_not_fast(name: str) -> None:
    class Stream:
        read1 = None

    parts: dict[str, object] = {"_sock": Stream, "send_QUERY": None, "message_types": {}}

    assert copy_stream.is_fast(type("Complete", (), parts))
    del parts[name]
    assert not copy_stream.is_fast(type("Incomplete", (), parts))


@pytest.mark.parametrize("crlf", [False, True], ids=["LF", "CR LF"])
@pytest.mark.parametrize("query", QUERIES.values(), ids=QUERIES.keys())
def test_the_public_way_gives_the_same_bytes(
    session: pg8000.native.Connection, monkeypatch: pytest.MonkeyPatch, query: str, crlf: bool
) -> None:
    fast = copied(session, query, crlf=crlf)

    monkeypatch.setattr(copy_stream, "is_fast", lambda connection: False)

    assert copied(session, query, crlf=crlf) == fast


def test_rows_are_the_databases_own(
    session: pg8000.native.Connection, plain_data: settings.DataDatabaseSettings
) -> None:
    for query in QUERIES.values():
        assert copied(session, query)[0] == platform.copy(plain_data, query)


def test_a_row_of_30_mb_arrives_whole(session: pg8000.native.Connection) -> None:
    query = f"SELECT n, repeat('ab', {LONG // 2}) AS long FROM generate_series(1, 2) AS n"

    text, rows = copied(session, query, header=False)

    assert rows == 2
    assert text == b"".join(b"%d,%s\n" % (n, b"ab" * (LONG // 2)) for n in (1, 2))


def test_an_empty_result_is_its_header(session: pg8000.native.Connection) -> None:
    assert copied(session, QUERIES["nothing"]) == (b"a\n", 1)
    assert copied(session, QUERIES["nothing"], header=False) == (b"", 0)


@pytest.mark.parametrize("fast", [True, False], ids=["fast", "public"])
def test_an_error_in_the_middle_is_raised_after_the_rows_before_it(
    plain_data: settings.DataDatabaseSettings, monkeypatch: pytest.MonkeyPatch, fast: bool
) -> None:
    if not fast:
        monkeypatch.setattr(copy_stream, "is_fast", lambda connection: False)
    connection = database.connect(plain_data, application_name="tests", **sqltext.SESSION)
    seen = 0

    def write(block: bytes, rows: int, last: bytes) -> None:
        nonlocal seen
        seen += rows

    try:
        with pytest.raises(database.DriverError) as caught:
            copy_stream.copy_out(
                connection,
                "COPY (SELECT 1 / (50000 - n) FROM generate_series(1, 90000) AS n) TO STDOUT",
                write,
            )
    finally:
        connection.close()

    assert database.sqlstate(caught.value) == "22012"
    assert seen == 49_999


def test_a_server_that_goes_away_without_a_word_is_an_error(
    plain_data: settings.DataDatabaseSettings,
) -> None:
    connection = database.connect(plain_data, application_name="tests", **sqltext.SESSION)
    blocks = 0

    def write(block: bytes, rows: int, last: bytes) -> None:
        nonlocal blocks
        blocks += 1
        connection._usock.shutdown(2)

    with pytest.raises((pg8000.native.InterfaceError, OSError)) as caught:
        copy_stream.copy_out(
            connection, "COPY (SELECT n FROM generate_series(1, 9000000) AS n) TO STDOUT", write
        )
    connection._usock.close()

    assert blocks >= 1
    assert database.is_transient(caught.value)


@pytest.mark.parametrize("compression", list(jobs.Compression))
@pytest.mark.parametrize("format", list(jobs.ResultFormat))
def test_an_empty_result_is_published(
    worker: run_job.Worker,
    client_id: uuid.UUID,
    format: jobs.ResultFormat,
    compression: jobs.Compression,
) -> None:
    sql = "n, 'x' AS padding FROM generate_series(1, 0) AS n"
    job = platform.submit(
        worker, client_id, "anything", {"sql": sql}, format=format, compression=compression
    )

    done = platform.run(worker, job)

    assert done.status is jobs.JobStatus.SUCCEEDED
    assert done.result is not None
    assert done.result.rows == 0
    assert done.result.bytes == len(platform.read(worker.bucket, done))


def assert_nothing_left(
    worker: run_job.Worker, s3: StrictS3, backends: reports.Backends, job: jobs.Job
) -> None:
    assert platform.get(worker, job).result is None
    assert platform.left_in(worker.bucket) == []
    assert s3.uploads == {}
    store.until(lambda: not backends.pids(), what="no session of an export is left")


@pytest.mark.parametrize("row", [1, 1_000, 150_000], ids=["first", "block", "part"])
def test_a_division_by_zero_at_some_row_leaves_nothing(
    worker: run_job.Worker,
    client_id: uuid.UUID,
    s3: StrictS3,
    backends: reports.Backends,
    row: int,
) -> None:
    sql = f"1 / ({row} - n) AS q, repeat('x', 100) AS p FROM generate_series(1, 200000) AS n"
    job = platform.submit(worker, client_id, "anything", {"sql": sql})

    done = platform.run(worker, job)

    assert (done.status, done.error_code) == (jobs.JobStatus.FAILED, "database_error")
    assert ("CreateMultipartUpload" in s3.calls) == (row == 150_000)
    assert_nothing_left(worker, s3, backends, job)


def test_a_backend_that_is_terminated_in_the_middle_leaves_nothing(
    worker: run_job.Worker, client_id: uuid.UUID, s3: StrictS3, backends: reports.Backends
) -> None:
    uploading, go_on = threading.Event(), threading.Event()

    def wait(number: int) -> None:
        if number == 2:
            uploading.set()
            assert go_on.wait(30)

    s3.fail("UploadPart", wait)
    job = platform.submit(worker, client_id, "numbers", {"rows": 600_000})
    running = reports.Running(worker)
    assert uploading.wait(20)
    [pid] = backends.pids("COPY")

    backends.terminate([pid])
    go_on.set()
    running.join()

    waiting = platform.get(worker, job)
    assert waiting.status is jobs.JobStatus.QUEUED
    assert waiting.attempts == 1
    assert_nothing_left(worker, s3, backends, job)

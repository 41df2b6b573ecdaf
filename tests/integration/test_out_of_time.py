"""Exports that are stopped from beside: the time ends, or the client cancels, and nothing comes."""

import dataclasses
import datetime as dt
import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import pytest
import sqlalchemy as sa

from jobplatform import errors, job_store, jobs, results, settings, templating
from jobplatform.usecases import cancel_job, run_job
from tests.helpers import platform, reports, store
from tests.helpers.s3 import StrictS3

pytestmark = pytest.mark.usefixtures("templates")
QUEUED, FAILED, CANCELLED = (
    jobs.JobStatus.QUEUED,
    jobs.JobStatus.FAILED,
    jobs.JobStatus.CANCELLED,
)


class Invocation(reports.Running):
    """A worker in a thread of its own, and the seconds that it has left."""

    under_way: ClassVar[list["Invocation"]] = []

    def __init__(self, worker: run_job.Worker) -> None:
        self.left = 900.0
        self.under_way.append(self)
        super().__init__(worker, lambda: self.left)


@pytest.fixture(autouse=True)
def _nobody_waits_for_ever() -> Iterator[None]:
    yield
    for invocation in Invocation.under_way:
        invocation.left = 0.5
        invocation.join()
    Invocation.under_way.clear()


def ordered(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    """`anything`, with an order that an export can go on by."""
    changed = dataclasses.replace(reports.TEMPLATES["anything"], order=("n",), **changes)
    reports.install(monkeypatch, {"anything": changed})


def rows_of(monkeypatch: pytest.MonkeyPatch, rows: Callable[..., Any]) -> None:
    changed = dataclasses.replace(reports.TEMPLATES["python_rows"], rows=rows)
    reports.install(monkeypatch, {"python_rows": changed})


WAIT = """
CREATE OR REPLACE FUNCTION wait_at(n integer, at integer) RETURNS integer LANGUAGE plpgsql STABLE
COST 100000 AS $$
BEGIN
    IF n = at THEN PERFORM pg_sleep(60); END IF;
    RETURN n;
END $$
"""


def stalling(at: int) -> dict[str, str]:
    """A query that answers the rows before `at`, and then nothing."""
    row = f"n, repeat('x', 1000) AS a, wait_at(n, {at}) AS b"
    return {"sql": f"{row} FROM (SELECT n FROM generate_series(1, 20000) AS g(n) ORDER BY n) AS s"}


def assert_no_session(backends: reports.Backends) -> None:
    store.until(lambda: not backends.pids(), what="no session of an export is left")


def test_python_rows_that_wait_for_the_database_end_before_the_invocation(
    worker: run_job.Worker,
    client_id: uuid.UUID,
    backends: reports.Backends,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def rows(params: reports.Params, read: templating.Read) -> Any:
        yield 1, "first"
        yield from read(reports.slow(params))

    rows_of(monkeypatch, rows)
    job = platform.submit(worker, client_id, "python_rows", {"seconds": 60})
    running = Invocation(worker)
    store.until(lambda: backends.pids("FETCH"))

    running.left = 9.0
    running.join(5)

    done = platform.get(worker, job)
    assert (done.status, done.error_code, done.attempts) == (FAILED, "export_too_long", 1)
    [attempt] = store.attempts(worker.engine, job.id)
    assert "the invocation ended after" in attempt["error_detail"]
    assert platform.left_in(worker.bucket) == []
    assert_no_session(backends)


@pytest.mark.parametrize("cancelled", [False, True])
def test_the_end_of_a_job_is_written_down_where_python_rows_do_not_listen(
    worker: run_job.Worker, client_id: uuid.UUID, monkeypatch: pytest.MonkeyPatch, cancelled: bool
) -> None:
    """Lambda kills the invocation then, and nobody has to find out what became of the job."""
    stuck, told, killed = threading.Event(), threading.Event(), threading.Event()
    interrupt = run_job._Attempt._interrupt

    def tell(attempt: run_job._Attempt, reason: errors.ExecutionError) -> None:
        interrupt(attempt, reason)
        told.set()

    monkeypatch.setattr(run_job._Attempt, "_interrupt", tell)

    def rows(params: reports.Params, read: templating.Read) -> Any:
        stuck.set()
        killed.wait(30)
        yield 1, "too late"

    rows_of(monkeypatch, rows)
    job = platform.submit(worker, client_id, "python_rows")
    running = Invocation(worker)
    assert stuck.wait(10)
    if cancelled:
        store.cancel(worker.engine, job.id)
        assert told.wait(10)

    running.left = 3.0
    done = store.until(lambda: _final(worker, job))

    assert running.is_alive
    assert done.status is (CANCELLED if cancelled else FAILED)
    assert done.error_code == (None if cancelled else "export_too_long")
    killed.set()
    running.join()
    assert platform.get(worker, job).status is done.status
    assert [each["outcome"] for each in store.attempts(worker.engine, job.id)] == [done.status]


def _final(worker: run_job.Worker, job: jobs.Job) -> jobs.Job | None:
    found = platform.get(worker, job)
    return found if found.is_final else None


@pytest.mark.parametrize("consistency", ["snapshot", "live"])
def test_a_query_that_answers_nothing_for_long_is_handed_over(
    worker: run_job.Worker,
    client_id: uuid.UUID,
    backends: reports.Backends,
    monkeypatch: pytest.MonkeyPatch,
    consistency: str,
) -> None:
    ordered(monkeypatch, consistency=consistency)
    backends.run(WAIT)
    job = platform.submit(worker, client_id, "anything", stalling(at=15_000))
    first = Invocation(worker)
    store.until(lambda: store.row(worker.engine, job.id)["bytes_written"] > 6 * 2**20)

    first.left = 20.0
    store.until(lambda: platform.get(worker, job).status is QUEUED)

    handed_over = platform.get(worker, job)
    assert handed_over.attempts == 0
    assert handed_over.checkpoint is not None
    assert len(handed_over.checkpoint["upload"]["parts"]) >= 1
    second = Invocation(worker)
    first.join()
    store.until(lambda: backends.pids("COPY"))
    if consistency == "live":
        store.cancel(worker.engine, job.id)
    else:
        second.left = 20.0
        store.until(lambda: platform.get(worker, job).status is QUEUED)
        second.left = 0.5
    second.join()

    ended = platform.get(worker, job)
    if consistency == "live":
        assert ended.status is CANCELLED
    else:
        assert ended.status is QUEUED
    # A server that waits within a row sees only after a while that nobody listens.
    backends.terminate(backends.pids())


def test_a_query_that_never_answers_in_one_invocation_fails_after_its_attempts(
    worker: run_job.Worker,
    client_id: uuid.UUID,
    backends: reports.Backends,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ordered(monkeypatch)
    backends.run(WAIT)
    job = platform.submit(worker, client_id, "anything", stalling(at=1))

    for _ in range(4):
        running = Invocation(worker)
        store.until(lambda: backends.pids("COPY"))
        running.left = 20.0
        running.join()

    done = platform.get(worker, job)
    assert (done.status, done.error_code, done.attempts) == (FAILED, "export_too_long", 4)
    tries = store.attempts(worker.engine, job.id)
    assert [each["outcome"] for each in tries] == ["retry", "retry", "retry", "failed"]
    assert "no progress within one invocation" in tries[-1]["error_detail"]
    assert_no_session(backends)


def test_an_export_that_cannot_finish_its_upload_in_time_is_tried_again(
    worker: run_job.Worker,
    client_id: uuid.UUID,
    s3: StrictS3,
    backends: reports.Backends,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ordered(monkeypatch)
    go_on = threading.Event()
    s3.fail("UploadPart", lambda number: go_on.wait(30))
    sql = "n, repeat('x', 1000) AS a FROM generate_series(1, 8000) AS q(n)"
    job = platform.submit(worker, client_id, "anything", {"sql": sql})
    running = Invocation(worker)
    store.until(lambda: "UploadPart" in s3.calls)

    running.left = 9.0
    running.join(10)
    go_on.set()

    found = platform.get(worker, job)
    assert (found.status, found.attempts) == (QUEUED, 1)
    store.until(lambda: platform.left_in(worker.bucket) == [])
    assert_no_session(backends)


def test_a_cancel_does_not_wait_for_s3_and_the_job_stays_this_attempts(
    worker: run_job.Worker,
    client_id: uuid.UUID,
    s3: StrictS3,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    go_on = threading.Event()
    s3.fail("UploadPart", lambda number: go_on.wait(30))
    job = platform.submit(worker, client_id, "numbers", {"rows": 400_000})
    aborting = threading.Event()
    abort = results.ResultWriter.abort

    def slow_abort(writer: results.ResultWriter) -> None:
        aborting.set()
        lease = store.row(worker.engine, job.id)["lease_expires_at"]
        store.until(lambda: store.row(worker.engine, job.id)["lease_expires_at"] > lease)
        abort(writer)

    monkeypatch.setattr(results.ResultWriter, "abort", slow_abort)
    running = Invocation(worker)
    store.until(lambda: s3.calls.count("UploadPart") == 2)

    cancel_job.cancel_job(
        job.id, client_id=client_id, engine=worker.engine, settings=settings.JobSettings()
    )
    running.join(5)

    assert aborting.is_set()
    assert platform.get(worker, job).status is CANCELLED
    go_on.set()
    store.until(lambda: platform.left_in(worker.bucket) == [])
    assert s3.uploads == {}


def handed_over(
    worker: run_job.Worker, client_id: uuid.UUID, monkeypatch: pytest.MonkeyPatch
) -> tuple[jobs.Job, Invocation]:
    """A job with parts in S3 that waits for a worker, and the one that keeps its snapshot."""
    write = results.ResultWriter.write

    def watched(writer: results.ResultWriter, block: bytes, rows: int, last: bytes) -> None:
        write(writer, block, rows, last)
        if writer.bytes_in > 6 * 2**20:
            first.left = 40.0

    sql = "n, repeat('x', 1000) AS a FROM generate_series(1, 30000) AS q(n)"
    job = platform.submit(worker, client_id, "anything", {"sql": sql})
    with monkeypatch.context() as patch:
        patch.setattr(results.ResultWriter, "write", watched)
        first = Invocation(worker)
        store.until(lambda: platform.get(worker, job).checkpoint)
    return job, first


@pytest.mark.parametrize("consistency", ["snapshot", "live"])
def test_an_attempt_that_fails_before_it_takes_over_leaves_the_checkpoint(
    worker: run_job.Worker,
    client_id: uuid.UUID,
    backends: reports.Backends,
    monkeypatch: pytest.MonkeyPatch,
    consistency: str,
) -> None:
    ordered(monkeypatch, consistency=consistency)
    job, first = handed_over(worker, client_id, monkeypatch)
    before = platform.get(worker, job).checkpoint
    away = settings.DataDatabaseSettings(url="postgresql://nobody@127.0.0.1:1/data")
    run_job.run_job(dataclasses.replace(worker, data=away), seconds_left=lambda: 900.0)
    failed = platform.get(worker, job)
    assert (failed.status, failed.attempts) == (QUEUED, 1)
    assert failed.checkpoint == before
    store.change(worker.engine, job.id, available_at=dt.datetime.now(dt.UTC))

    run_job.run_job(worker, seconds_left=lambda: 900.0)

    done = platform.get(worker, job)
    assert done.result is not None
    assert done.result.rows == 30_000
    assert before is not None
    assert before["upload_token"] in done.result.key
    first.left = 0.5
    first.join()
    assert_no_session(backends)


def test_a_session_is_closed_where_taking_over_cannot_be_noted(
    worker: run_job.Worker,
    client_id: uuid.UUID,
    backends: reports.Backends,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ordered(monkeypatch)
    job, first = handed_over(worker, client_id, monkeypatch)

    def broken(*_: Any, **__: Any) -> None:
        raise ConnectionError("the platform's database is away")

    with monkeypatch.context() as patch:
        patch.setattr(job_store, "note_taken_over", broken)
        run_job.run_job(worker, seconds_left=lambda: 900.0)

    assert platform.get(worker, job).status is QUEUED
    first.left = 0.5
    first.join()
    assert_no_session(backends)


def test_a_live_export_keeps_its_checkpoint_where_a_part_fails_late(
    worker: run_job.Worker,
    client_id: uuid.UUID,
    s3: StrictS3,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Parts behind it are safe by then; the one before it is where the next attempt goes on."""
    ordered(monkeypatch, consistency="live")
    late = threading.Event()

    def fail_late(number: int) -> None:
        if number == 3:
            assert late.wait(30)
            raise ConnectionError("the network is gone")
        if number == 8:
            late.set()

    s3.fail("UploadPart", fail_late)
    sql = "n, repeat('x', 1000) AS a FROM generate_series(1, 60000) AS q(n)"
    job = platform.submit(worker, client_id, "anything", {"sql": sql})

    run_job.run_job(worker, seconds_left=lambda: 900.0)

    found = platform.get(worker, job)
    assert found.status is QUEUED
    assert found.checkpoint is not None
    assert len(found.checkpoint["upload"]["parts"]) >= 2
    store.change(worker.engine, job.id, available_at=dt.datetime.now(dt.UTC))
    run_job.run_job(worker, seconds_left=lambda: 900.0)
    done = platform.get(worker, job)
    assert done.result is not None
    assert done.result.rows == 60_000


def test_a_live_export_whose_object_is_whole_does_not_go_on_at_its_parts(
    worker: run_job.Worker,
    client_id: uuid.UUID,
    s3: StrictS3,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its upload has ended: an attempt that tried to would be lost."""
    ordered(monkeypatch, consistency="live")

    def no_manifest(number: int) -> None:
        if number == 1:
            raise ConnectionError("the network is gone")

    s3.fail("PutObject", no_manifest)
    sql = "n, repeat('x', 1000) AS a FROM generate_series(1, 12000) AS q(n)"
    job = platform.submit(worker, client_id, "anything", {"sql": sql})
    run_job.run_job(worker, seconds_left=lambda: 900.0)
    assert platform.get(worker, job).checkpoint is None
    store.change(worker.engine, job.id, available_at=dt.datetime.now(dt.UTC))

    run_job.run_job(worker, seconds_left=lambda: 900.0)

    done = platform.get(worker, job)
    assert (done.status, done.attempts) == (jobs.JobStatus.SUCCEEDED, 2)


def test_a_large_checkpoint_is_saved_more_rarely(
    worker: run_job.Worker, client_id: uuid.UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_job, "_SAVE_PAUSE_A_PART", 3600.0)
    ordered(monkeypatch, consistency="live")
    saved: list[int] = []
    heartbeat = job_store.heartbeat

    def watched(conn: sa.Connection, job_id: uuid.UUID, **values: Any) -> bool | None:
        if values["checkpoint"] is not None:
            saved.append(len(values["checkpoint"]["upload"]["parts"]))
        return heartbeat(conn, job_id, **values)

    monkeypatch.setattr(job_store, "heartbeat", watched)
    sql = (
        "n, repeat('x', 1000) AS a, CASE WHEN n % 1000 = 0 THEN pg_sleep(0.02) END AS b"
        " FROM generate_series(1, 60000) AS q(n)"
    )
    job = platform.submit(worker, client_id, "anything", {"sql": sql})

    run_job.run_job(worker, seconds_left=lambda: 900.0)

    assert platform.get(worker, job).status is jobs.JobStatus.SUCCEEDED
    assert len(saved) <= 1

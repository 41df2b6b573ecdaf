"""Exports that are longer than one invocation: one point in time, byte for byte."""

import dataclasses
import datetime as dt
import hashlib
import itertools
import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from infra.local import postgres
from jobplatform import database, job_store, jobs, results, settings, templating
from jobplatform.usecases import run_job
from tests.helpers import platform, store

_ROWS = 1_500_000
_TABLE = sa.table("wide", *map(sa.column, ("id", "grp", "a", "b", "c")))


@pytest.fixture(scope="module")
def wide(data: settings.DataDatabaseSettings) -> Iterator[str]:
    """A table that makes some 170 MB of CSV: 33 parts of the smallest size."""
    assert data.url is not None
    connection = postgres.connect(data.url)
    connection.run(
        "CREATE TABLE wide AS SELECT i AS id, i % 97 AS grp, md5(i::text) AS a,"
        f" repeat('ä\"', (i % 9)::int) || md5((i * 7)::text) AS b, i / 3.0 AS c"
        f" FROM generate_series(1::bigint, {_ROWS}) AS i"
    )
    connection.run("ALTER TABLE wide ADD PRIMARY KEY (id)")
    connection.run("ANALYZE wide")
    yield data.url
    connection.run("DROP TABLE wide")
    connection.close()


def _template(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> templating.Template:
    fields: dict[str, Any] = {
        "params": templating.Params,
        "query": lambda params: sa.select(_TABLE),
        "order": ("id",),
        "name": "wide",
    }
    made = templating.Template(**{**fields, **changes})
    known = templating.get
    monkeypatch.setattr(templating, "get", lambda name: made if name == "wide" else known(name))
    return made


class _Time:
    """Seconds left of an invocation: plenty until it has written `bytes_`, then hardly any."""

    written = threading.local()

    def __init__(self, bytes_: int, *, then: float = 20.0) -> None:
        self._bytes = bytes_
        self._then = then

    def __call__(self) -> float:
        return 900.0 if getattr(self.written, "bytes", 0) < self._bytes else self._then

    @classmethod
    def watch(cls, monkeypatch: pytest.MonkeyPatch) -> None:
        write = results.ResultWriter.write

        def counted(self: results.ResultWriter, block: bytes, rows: int, last: bytes) -> None:
            cls.written.bytes = getattr(cls.written, "bytes", 0) + len(block)
            write(self, block, rows, last)

        monkeypatch.setattr(results.ResultWriter, "write", counted)
        # However little is left by this clock, what is on its way arrives.
        monkeypatch.setattr(run_job._Attempt, "_patience", lambda attempt: 10.0)


def _deploy(monkeypatch: pytest.MonkeyPatch, made: templating.Template, *, version: str) -> None:
    changed = dataclasses.replace(made, version=version)
    monkeypatch.setattr(templating, "get", lambda name: changed)


def _run_alone(worker: run_job.Worker, job: jobs.Job) -> None:
    """One invocation that hands over when nobody is there to take it."""
    _Time.written.bytes = 0
    _make_due(worker, job)
    run_job.run_job(worker, seconds_left=_Time(12 * 2**20, then=0.5))


def _run_invocations(
    worker: run_job.Worker, job: jobs.Job, seconds_left: Callable[[], Callable[[], float]]
) -> int:
    """Runs the job as Lambda would: each invocation in a thread of its own, the one that hands over
    still there while the next one starts."""
    done = 0
    threads: list[threading.Thread] = []
    deadline = dt.datetime.now() + dt.timedelta(seconds=100)
    pause = threading.Event()
    while not platform.get(worker, job).is_final:
        assert dt.datetime.now() < deadline
        if platform.get(worker, job).status is jobs.JobStatus.QUEUED:
            thread = threading.Thread(
                target=run_job.run_job, args=(worker,), kwargs={"seconds_left": seconds_left()}
            )
            thread.start()
            threads.append(thread)
            done += 1
            while platform.get(worker, job).status is jobs.JobStatus.QUEUED:
                pause.wait(0.01)
        pause.wait(0.01)
    for thread in threads:
        thread.join(30)
    return done


@pytest.mark.parametrize("split_by", [None, "id"])
def test_thirty_hand_overs_make_the_bytes_of_one_copy(
    worker: run_job.Worker,
    client_id: uuid.UUID,
    data: settings.DataDatabaseSettings,
    wide: str,
    monkeypatch: pytest.MonkeyPatch,
    split_by: str | None,
) -> None:
    _template(monkeypatch, split_by=split_by)
    _Time.watch(monkeypatch)
    expected = platform.copy(data, "SELECT * FROM wide ORDER BY id")
    job = platform.submit(worker, client_id, "wide")
    first = threading.Event()
    writer = threading.Thread(target=_write_meanwhile, args=(wide, first, worker, job))
    writer.start()

    invocations = _run_invocations(worker, job, lambda: _Time(6 * 2**20))

    writer.join()
    done = platform.get(worker, job)
    assert done.error_code is None
    assert done.result is not None
    assert invocations >= 25
    assert done.attempts == 1
    assert done.result.rows == _ROWS
    stored = platform.read(worker.bucket, done)
    assert hashlib.sha256(stored).hexdigest() == hashlib.sha256(expected).hexdigest()
    assert done.result.sha256 == hashlib.sha256(stored).hexdigest()
    connection = postgres.connect(wide)
    changed = connection.run("SELECT count(*) FROM wide WHERE a = 'changed' OR id < 0")[0][0]
    connection.run("DELETE FROM wide WHERE id < 0")
    connection.run("UPDATE wide SET a = md5(id::text) WHERE a = 'changed'")
    connection.close()
    assert changed > 0


def _write_meanwhile(
    url: str, stop: threading.Event, worker: run_job.Worker, job: jobs.Job
) -> None:
    """Inserts, updates and deletes while the export runs; none of it may be seen."""
    connection = postgres.connect(url)
    # From the first hand-over on: before it, the snapshot may not have been taken.
    while platform.get(worker, job).checkpoint is None:
        stop.wait(0.01)
    number = 0
    while not platform.get(worker, job).is_final:
        number += 1
        connection.run("INSERT INTO wide SELECT CAST(:n AS bigint), 1, 'new', 'new', 1", n=-number)
        connection.run("UPDATE wide SET a = 'changed' WHERE id = :n", n=_ROWS - number * 1000)
        stop.wait(0.05)
    connection.close()


def _make_due(worker: run_job.Worker, job: jobs.Job) -> None:
    store.change(worker.engine, job.id, available_at=dt.datetime.now(dt.UTC))


def test_a_broken_chain_starts_over_with_a_new_snapshot(
    worker: run_job.Worker,
    client_id: uuid.UUID,
    data: settings.DataDatabaseSettings,
    wide: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _template(monkeypatch)
    _Time.watch(monkeypatch)
    _Time.written.bytes = 0
    job = platform.submit(worker, client_id, "wide")
    # Nobody takes over while the first invocation waits: its time is over at once.
    run_job.run_job(worker, seconds_left=_Time(12 * 2**20, then=0.5))
    handed_over = platform.get(worker, job)
    assert handed_over.status is jobs.JobStatus.QUEUED
    assert handed_over.checkpoint is not None
    # Not at once: exports that wait for each other's workers would all begin again together.
    assert handed_over.available_at > dt.datetime.now(dt.UTC)
    _make_due(worker, job)

    done = platform.run(worker, job)

    assert done.result is not None
    assert done.result.rows == _ROWS
    stored = platform.read(worker.bucket, done)
    expected = platform.copy(data, "SELECT * FROM wide ORDER BY id")
    assert stored == expected
    assert str(handed_over.checkpoint["upload_token"]) not in done.result.key


@pytest.mark.parametrize("format", list(jobs.ResultFormat))
@pytest.mark.parametrize("compression", list(jobs.Compression))
def test_a_live_export_goes_on_at_its_last_part_after_an_error(
    worker: run_job.Worker,
    client_id: uuid.UUID,
    data: settings.DataDatabaseSettings,
    wide: str,
    monkeypatch: pytest.MonkeyPatch,
    format: jobs.ResultFormat,
    compression: jobs.Compression,
) -> None:
    _template(monkeypatch, consistency="live")
    worker = dataclasses.replace(
        worker, jobs=worker.jobs.model_copy(update={"retry_delays": (dt.timedelta(0),) * 3})
    )
    job = platform.submit(worker, client_id, "wide", format=format, compression=compression)
    with monkeypatch.context() as patch:
        patch.setattr(worker.bucket.client, "upload_part", _FailsAfter(worker, parts=4))
        run_job.run_job(worker, seconds_left=lambda: 900.0)
    stopped = platform.get(worker, job)
    assert stopped.status is jobs.JobStatus.QUEUED
    assert stopped.checkpoint is not None
    assert len(stopped.checkpoint["upload"]["parts"]) >= 3

    done = platform.run(worker, job)

    assert done.result is not None
    assert done.result.rows == _ROWS
    assert done.attempts == 2
    stored = platform.read(worker.bucket, done)
    assert done.result.sha256 == hashlib.sha256(stored).hexdigest()
    if format is jobs.ResultFormat.CSV and compression is jobs.Compression.NONE:
        assert stored == platform.copy(data, "SELECT * FROM wide ORDER BY id")
    with database.transaction(worker.engine) as conn:
        assert job_store.attempts_to_clean(conn, worker_life=dt.timedelta(days=1), limit=10) == []


class _FailsAfter:
    def __init__(self, worker: run_job.Worker, *, parts: int) -> None:
        self._real = worker.bucket.client.upload_part
        self._calls = itertools.count(1)
        self._parts = parts

    def __call__(self, **arguments: Any) -> Any:
        if next(self._calls) > self._parts:
            raise ConnectionError("the network is gone")
        return self._real(**arguments)


def test_a_chain_that_breaks_every_time_comes_to_an_end(
    worker: run_job.Worker,
    client_id: uuid.UUID,
    wide: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = _template(monkeypatch)
    _Time.watch(monkeypatch)
    job = platform.submit(worker, client_id, "wide")
    # Deployed meanwhile: a continuation compares with what the attempt before it ran.
    _deploy(monkeypatch, made, version="2")

    invocations = 0
    while not platform.get(worker, job).is_final and invocations < 20:
        _run_alone(worker, job)
        invocations += 1

    ended = platform.get(worker, job)
    assert ended.status is jobs.JobStatus.FAILED
    assert ended.error_code == "export_too_long"
    # The first, ten that are not its fault, and its four attempts.
    assert invocations == 15
    assert "10 times nobody" not in store.attempts(worker.engine, job.id)[-1]["error_detail"]


def test_new_versions_under_way_cost_the_job_no_attempt(
    worker: run_job.Worker,
    client_id: uuid.UUID,
    data: settings.DataDatabaseSettings,
    wide: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its upload is not gone on with by other code, so that each time it starts over."""
    made = _template(monkeypatch)
    _Time.watch(monkeypatch)
    job = platform.submit(worker, client_id, "wide")
    for deployment in range(6):
        _deploy(monkeypatch, made, version=str(deployment))
        _run_alone(worker, job)
        assert platform.get(worker, job).attempts == 0

    _make_due(worker, job)
    done = platform.run(worker, job)

    assert done.attempts == 1
    assert platform.read(worker.bucket, done) == platform.copy(
        data, "SELECT * FROM wide ORDER BY id"
    )


def test_a_job_of_an_older_version_of_its_template_is_handed_over_too(
    worker: run_job.Worker,
    client_id: uuid.UUID,
    data: settings.DataDatabaseSettings,
    wide: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = _template(monkeypatch)
    _Time.watch(monkeypatch)
    job = platform.submit(worker, client_id, "wide")
    _deploy(monkeypatch, made, version="2")

    invocations = _run_invocations(worker, job, lambda: _Time(30 * 2**20))

    assert 3 <= invocations <= 9
    done = platform.get(worker, job)
    assert done.result is not None
    assert done.attempts == 1
    assert platform.read(worker.bucket, done) == platform.copy(
        data, "SELECT * FROM wide ORDER BY id"
    )


def test_a_query_that_is_another_one_in_the_next_worker_starts_over(
    worker: run_job.Worker,
    client_id: uuid.UUID,
    data: settings.DataDatabaseSettings,
    wide: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # As with the day of today at midnight.
    days = ["id % 2 = 0"]
    _template(monkeypatch, query=lambda params: sa.select(_TABLE).where(sa.text(days[-1])))
    _Time.watch(monkeypatch)
    job = platform.submit(worker, client_id, "wide")
    times = iter([_Time(12 * 2**20)])

    def next_day() -> _Time:
        time = next(times, None)
        if time is None:
            days.append("id % 2 = 1")
        return time or _Time(2**40)

    assert _run_invocations(worker, job, next_day) == 2

    done = platform.get(worker, job)
    assert done.result is not None
    assert platform.read(worker.bucket, done) == platform.copy(
        data, "SELECT * FROM wide WHERE id % 2 = 1 ORDER BY id"
    )


def test_a_query_that_is_another_one_in_each_worker_comes_to_an_end(
    worker: run_job.Worker, client_id: uuid.UUID, wide: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = itertools.count()
    _template(
        monkeypatch,
        query=lambda params: sa.select(_TABLE).where(sa.text(f"id > {next(number)}")),
    )
    _Time.watch(monkeypatch)
    job = platform.submit(worker, client_id, "wide")
    # A chain that was lost once is no excuse for what comes after.
    _run_alone(worker, job)
    _make_due(worker, job)

    invocations = _run_invocations(worker, job, lambda: _Time(12 * 2**20))

    ended = platform.get(worker, job)
    assert ended.status is jobs.JobStatus.FAILED
    assert ended.error_code == "export_too_long"
    # The one that lost the chain is not the query's fault; its four attempts are.
    assert invocations == 5

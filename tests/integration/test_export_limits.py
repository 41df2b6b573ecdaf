"""Limits of the template, the plan and the worker: over one of them a job ends without a trace."""

import dataclasses
import datetime as dt
import uuid
from typing import Any

import pytest

from jobplatform import errors, export, jobs, plans, results, templating
from jobplatform.usecases import run_job
from tests.helpers import platform, reports, store
from tests.helpers.s3 import StrictS3

pytestmark = pytest.mark.usefixtures("templates")
FAILED, SUCCEEDED = jobs.JobStatus.FAILED, jobs.JobStatus.SUCCEEDED
SHORT, LONG = dt.timedelta(milliseconds=300), dt.timedelta(minutes=5)


def limit_template(monkeypatch: pytest.MonkeyPatch, name: str, **limits: Any) -> None:
    changed = dataclasses.replace(reports.TEMPLATES[name], **limits)
    reports.install(monkeypatch, {name: changed})


def limit_plan(monkeypatch: pytest.MonkeyPatch, **limits: Any) -> None:
    changed = dataclasses.replace(plans.PRO, **limits)
    monkeypatch.setitem(plans.PLANS, "pro", changed)


def limit_worker(worker: run_job.Worker, timeout: dt.timedelta) -> run_job.Worker:
    changed = worker.settings.model_copy(update={"statement_timeout": timeout})
    return dataclasses.replace(worker, settings=changed)


def assert_refused(
    worker: run_job.Worker,
    backends: reports.Backends,
    job: jobs.Job,
    error: type[errors.PermanentFailure],
) -> None:
    assert (job.status, job.error_code) == (FAILED, error.code)
    assert job.error_message == error.safe_message
    assert job.result is None
    assert job.attempts == 1
    assert platform.left_in(worker.bucket) == []
    store.until(lambda: not backends.pids(), what="no session of an export is left")


@pytest.mark.parametrize("whose", ["template", "plan", "worker"])
def test_the_shortest_statement_timeout_ends_the_job_for_good(
    worker: run_job.Worker,
    client_id: uuid.UUID,
    backends: reports.Backends,
    monkeypatch: pytest.MonkeyPatch,
    whose: str,
) -> None:
    limit_template(monkeypatch, "slow", statement_timeout=SHORT if whose == "template" else LONG)
    limit_plan(monkeypatch, statement_timeout=SHORT if whose == "plan" else LONG)
    worker = limit_worker(worker, SHORT if whose == "worker" else LONG)
    job = platform.submit(worker, client_id, "slow", {"seconds": 60})

    done = platform.run(worker, job)

    assert_refused(worker, backends, done, errors.QueryTooLong)
    [attempt] = store.attempts(worker.engine, job.id)
    assert attempt["error_code"] == "query_too_long"
    assert "0:00:00.300000" in attempt["error_detail"]


@pytest.mark.parametrize(("seconds_left", "timeout"), [(895.0, b"870s"), (500.0, b"500s")])
def test_a_template_or_plan_without_a_timeout_has_the_workers_or_the_time_that_is_left(
    worker: run_job.Worker, client_id: uuid.UUID, seconds_left: float, timeout: bytes
) -> None:
    job = platform.submit(
        worker, client_id, "anything", {"sql": "current_setting('statement_timeout') AS t"}
    )

    run_job.run_job(worker, seconds_left=lambda: seconds_left)

    assert platform.read(worker.bucket, platform.get(worker, job)) == b"t\n%s\n" % timeout


def test_a_statement_timeout_after_parts_leaves_none(
    worker: run_job.Worker,
    client_id: uuid.UUID,
    backends: reports.Backends,
    s3: StrictS3,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limit_template(monkeypatch, "anything", statement_timeout=dt.timedelta(seconds=3))
    sql = (
        "repeat('x', 1000) AS a, CASE n WHEN 30000 THEN pg_sleep(60) END AS b"
        " FROM generate_series(1, 30000) AS n"
    )
    job = platform.submit(worker, client_id, "anything", {"sql": sql})

    done = platform.run(worker, job)

    assert "UploadPart" in s3.calls
    assert_refused(worker, backends, done, errors.QueryTooLong)
    assert s3.uploads == {}


def test_a_read_of_python_rows_has_the_timeout_too(
    worker: run_job.Worker,
    client_id: uuid.UUID,
    backends: reports.Backends,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def rows(params: reports.Params, read: templating.Read) -> Any:
        yield from read(reports.slow(params))

    limit_template(monkeypatch, "python_rows", rows=rows, statement_timeout=SHORT)
    job = platform.submit(worker, client_id, "python_rows", {"seconds": 60})

    assert_refused(worker, backends, platform.run(worker, job), errors.QueryTooLong)


def test_a_query_that_somebody_cancels_is_tried_again(
    worker: run_job.Worker, client_id: uuid.UUID, backends: reports.Backends
) -> None:
    job = platform.submit(worker, client_id, "slow", {"seconds": 60})
    running = reports.Running(worker)
    [pid] = store.until(lambda: backends.pids("COPY"))

    backends.run(f"SELECT pg_cancel_backend({pid})")
    running.join()

    assert platform.get(worker, job).status is jobs.JobStatus.QUEUED
    [attempt] = store.attempts(worker.engine, job.id)
    assert attempt["error_code"] == "transient_error"


def test_a_clients_cancel_after_the_timeout_is_a_cancel(
    worker: run_job.Worker,
    client_id: uuid.UUID,
    backends: reports.Backends,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The query ends while the cancel is on its way: what the client wanted counts."""
    limit_template(monkeypatch, "slow", statement_timeout=dt.timedelta(seconds=2))
    monkeypatch.setattr(export.Export, "cancel", lambda self: None)
    job = platform.submit(worker, client_id, "slow", {"seconds": 60})
    running = reports.Running(worker)
    store.until(lambda: backends.pids("COPY"))

    store.cancel(worker.engine, job.id)
    running.join()

    done = platform.get(worker, job)
    assert (done.status, done.error_code) == (jobs.JobStatus.CANCELLED, None)


@pytest.mark.parametrize("compression", list(jobs.Compression))
@pytest.mark.parametrize("format", list(jobs.ResultFormat))
@pytest.mark.parametrize("whose", ["template", "plan"])
@pytest.mark.parametrize("name", ["numbers", "python_rows"])
def test_as_many_rows_as_allowed_and_not_one_more(
    worker: run_job.Worker,
    client_id: uuid.UUID,
    backends: reports.Backends,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    whose: str,
    format: jobs.ResultFormat,
    compression: jobs.Compression,
) -> None:
    limit_template(monkeypatch, name, max_rows=1_000 if whose == "template" else 9_999)
    limit_plan(monkeypatch, max_rows=1_000 if whose == "plan" else 9_999)

    def done(rows: int) -> jobs.Job:
        job = platform.submit(
            worker, client_id, name, {"rows": rows}, format=format, compression=compression
        )
        return platform.run(worker, job)

    assert_refused(worker, backends, done(1_001), errors.ResultTooLarge)
    allowed = done(1_000)
    assert allowed.result is not None
    assert allowed.result.rows == 1_000


@pytest.mark.parametrize("compression", list(jobs.Compression))
@pytest.mark.parametrize("whose", ["template", "plan"])
@pytest.mark.parametrize("name", ["numbers", "python_rows"])
def test_as_many_bytes_as_allowed_and_not_one_more(
    worker: run_job.Worker,
    client_id: uuid.UUID,
    backends: reports.Backends,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    whose: str,
    compression: jobs.Compression,
) -> None:
    """Counted before compression, header included."""

    def done(most: int | None) -> jobs.Job:
        limit_template(monkeypatch, name, max_bytes=most if whose == "template" else None)
        limit_plan(monkeypatch, max_bytes=most if whose == "plan" else None)
        job = platform.submit(worker, client_id, name, {"rows": 2_000}, compression=compression)
        return platform.run(worker, job)

    free = done(None)
    assert free.result is not None
    worker.bucket.delete([free.result.key])
    [attempt] = store.attempts(worker.engine, free.id)
    size = attempt["bytes_written"]
    assert size > 200_000

    assert_refused(worker, backends, done(size - 1), errors.ResultTooLarge)
    assert done(size).status is SUCCEEDED


@pytest.mark.parametrize("compression", list(jobs.Compression))
@pytest.mark.parametrize("may_continue", [False, True], ids=["plain", "ordered"])
def test_more_parts_than_s3_takes_leave_none(
    worker: run_job.Worker,
    client_id: uuid.UUID,
    backends: reports.Backends,
    s3: StrictS3,
    monkeypatch: pytest.MonkeyPatch,
    may_continue: bool,
    compression: jobs.Compression,
) -> None:
    monkeypatch.setattr(results, "MAX_PARTS", 3)
    limit_template(monkeypatch, "anything", order=("n",) if may_continue else ())
    # Text that gzip makes little of.
    sql = (
        "n, sha512(CAST(CAST(n AS text) AS bytea)) AS a, sha512(CAST(CAST(-n AS text) AS bytea))"
        " AS b FROM generate_series(1, 150000) AS n"
    )
    job = platform.submit(worker, client_id, "anything", {"sql": sql}, compression=compression)

    done = platform.run(worker, job)

    assert_refused(worker, backends, done, errors.ResultTooLarge)
    assert s3.uploads == {}

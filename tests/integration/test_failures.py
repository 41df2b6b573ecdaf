"""How attempts that fail end: at once or again, with what the customer may read and no more."""

import dataclasses
import datetime as dt
import itertools
import logging
import uuid
from typing import Any

import pytest

from jobplatform import jobs, settings
from jobplatform.usecases import run_job
from tests.helpers import platform, reports, store

pytestmark = pytest.mark.usefixtures("templates")
QUEUED, FAILED = jobs.JobStatus.QUEUED, jobs.JobStatus.FAILED
DELAYS = [dt.timedelta(seconds=5), dt.timedelta(seconds=30), dt.timedelta(minutes=2)]
SAFE = {
    "The report could not be made.",
    "The template did not accept the parameters.",
}


def assert_says_nothing(job: jobs.Job, *secrets: str) -> None:
    assert job.error_message in SAFE
    for secret in ("SELECT", "select", "secret cause", "db-7", "127.0.0.1", "Traceback", *secrets):
        assert secret not in (job.error_message or "")
    assert job.status_reason is None or "secret" not in job.status_reason


def fail_once(worker: run_job.Worker, job: jobs.Job) -> jobs.Job:
    """Makes the job due and runs it."""
    store.change(worker.engine, job.id, available_at=dt.datetime.now(dt.UTC))
    return platform.run(worker, job)


def wait_of(job: jobs.Job, before: dt.datetime) -> dt.timedelta:
    """How long it waits for its next attempt, counted from just before it failed."""
    return job.available_at - before


@pytest.mark.parametrize(
    ("sql", "code"),
    [
        ("* FROM no_such_table", "42P01"),
        ("no_such_column", "42703"),
        ("* FROM pg_authid", "42501"),
        ("no_such_function(1)", "42883"),
        ("1 /", "42601"),
        ("CAST('secret cause' AS integer)", "22P02"),
        ("1 / 0", "22012"),
        ("nextval('somewhere')", "42P01"),
    ],
)
def test_what_is_the_querys_own_fault_fails_at_once(
    worker: run_job.Worker, client_id: uuid.UUID, backends: reports.Backends, sql: str, code: str
) -> None:
    job = platform.submit(worker, client_id, "anything", {"sql": sql})

    done = platform.run(worker, job)

    assert (done.status, done.error_code, done.attempts) == (FAILED, "database_error", 1)
    assert_says_nothing(done, sql)
    [attempt] = store.attempts(worker.engine, job.id)
    assert attempt["outcome"] == "failed"
    assert code in attempt["error_detail"]
    assert platform.left_in(worker.bucket) == []
    store.until(lambda: not backends.pids(), what="no session of an export is left")


def test_a_query_cannot_write(
    worker: run_job.Worker, client_id: uuid.UUID, backends: reports.Backends
) -> None:
    backends.run(
        "CREATE OR REPLACE FUNCTION scribble() RETURNS int LANGUAGE plpgsql AS"
        " $$ BEGIN CREATE TABLE scribbled (n int); RETURN 1; END $$"
    )
    job = platform.submit(worker, client_id, "anything", {"sql": "scribble()"})

    done = platform.run(worker, job)

    assert done.status is not jobs.JobStatus.SUCCEEDED
    assert backends.run("SELECT to_regclass('scribbled')") == [[None]]
    [attempt] = store.attempts(worker.engine, job.id)
    assert "25006" in attempt["error_detail"]
    backends.run("DROP FUNCTION scribble()")


TRANSIENT = {
    "serialization_failure": "40001",
    "deadlock_detected": "40P01",
    "disk_full": "53100",
    "too_many_connections": "53300",
    "admin_shutdown": "57P01",
    "cannot_connect_now": "57P03",
    "connection_failure": "08006",
    "lock_not_available": "55P03",
}


@pytest.mark.parametrize("state", TRANSIENT.values(), ids=TRANSIENT.keys())
def test_what_may_pass_is_tried_four_times_with_growing_waits(
    worker: run_job.Worker, client_id: uuid.UUID, backends: reports.Backends, state: str
) -> None:
    job = platform.submit(
        worker, client_id, "numbers", {"rows": 20, "raise_at": 15, "state": state}
    )

    for number, delay in enumerate(DELAYS, 1):
        before = dt.datetime.now(dt.UTC)
        waiting = fail_once(worker, job)
        assert (waiting.status, waiting.attempts) == (QUEUED, number)
        assert (waiting.error_code, waiting.error_message) == (None, None)
        assert delay <= wait_of(waiting, before) < delay + dt.timedelta(seconds=5)
        # Before that it is nobody's.
        assert run_job.run_job(worker, seconds_left=lambda: 60.0) is None

    done = fail_once(worker, job)

    assert (done.status, done.error_code, done.attempts) == (FAILED, "database_error", 4)
    assert_says_nothing(done)
    attempts = store.attempts(worker.engine, job.id)
    assert [each["outcome"] for each in attempts].count("retry") == 3
    for attempt in attempts:
        assert "secret cause on host db-7" in attempt["error_detail"]
        assert state in attempt["error_detail"]
    assert platform.left_in(worker.bucket) == []
    store.until(lambda: not backends.pids(), what="no session of an export is left")


def test_a_connection_that_is_killed_each_time_fails_on_the_fourth(
    worker: run_job.Worker, client_id: uuid.UUID, backends: reports.Backends
) -> None:
    job = platform.submit(worker, client_id, "slow", {"seconds": 60})
    found: list[jobs.Job] = []

    for _ in range(4):
        store.change(worker.engine, job.id, available_at=dt.datetime.now(dt.UTC))
        running = reports.Running(worker)
        backends.terminate(store.until(lambda: backends.pids("COPY")))
        running.join()
        found.append(platform.get(worker, job))

    assert [each.status for each in found] == [QUEUED, QUEUED, QUEUED, FAILED]
    assert_says_nothing(found[-1])
    for attempt in store.attempts(worker.engine, job.id):
        assert "Traceback" in attempt["error_detail"]
    store.until(lambda: not backends.pids(), what="no session of an export is left")


def test_a_database_that_cannot_be_reached_is_tried_again(
    worker: run_job.Worker, client_id: uuid.UUID
) -> None:
    nowhere = settings.DataDatabaseSettings(url="postgresql://u:hidden@127.0.0.1:1/data")
    worker = dataclasses.replace(worker, data=nowhere)
    job = platform.submit(worker, client_id, "numbers")

    found = [fail_once(worker, job) for _ in range(4)]

    assert [each.status for each in found] == [QUEUED, QUEUED, QUEUED, FAILED]
    assert found[-1].error_code == "internal_error"
    assert_says_nothing(found[-1], "refused")
    for attempt in store.attempts(worker.engine, job.id):
        assert "ConnectionRefusedError" in attempt["error_detail"]
        assert "hidden" not in attempt["error_detail"]


def test_an_error_that_passes_costs_one_attempt(
    worker: run_job.Worker, client_id: uuid.UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = itertools.count(1)

    def query(params: reports.Params) -> Any:
        state = {"raise_at": 1, "state": "40001"} if next(calls) <= 2 else {}
        return reports.numbers(params.model_copy(update=state))

    flaky = dataclasses.replace(reports.TEMPLATES["numbers"], query=query)
    reports.install(monkeypatch, {"numbers": flaky})
    job = platform.submit(worker, client_id, "numbers", {"rows": 10})
    while not (done := fail_once(worker, job)).is_final:
        pass

    assert done.status is jobs.JobStatus.SUCCEEDED
    assert done.error_code is None
    assert store.transitions(worker.engine, job.id)[-1] == ("running", "succeeded")


@pytest.mark.parametrize("error", [ValueError("secret cause"), TypeError("secret cause")])
def test_what_the_template_refuses_fails_at_once(
    worker: run_job.Worker,
    client_id: uuid.UUID,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    def query(params: reports.Params) -> Any:
        raise error

    refusing = dataclasses.replace(reports.TEMPLATES["numbers"], query=query)
    reports.install(monkeypatch, {"numbers": refusing})
    job = platform.submit(worker, client_id, "numbers")

    done = platform.run(worker, job)

    assert (done.status, done.error_code, done.attempts) == (FAILED, "template_rejected", 1)
    assert_says_nothing(done)
    [attempt] = store.attempts(worker.engine, job.id)
    assert "secret cause" in attempt["error_detail"]


def test_an_order_that_the_query_does_not_answer_fails_at_once(
    worker: run_job.Worker, client_id: uuid.UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = dataclasses.replace(reports.TEMPLATES["numbers"], order=("number",))
    reports.install(monkeypatch, {"numbers": wrong})
    job = platform.submit(worker, client_id, "numbers")

    done = platform.run(worker, job)

    assert (done.status, done.error_code) == (FAILED, "template_rejected")
    assert_says_nothing(done)


def test_a_template_that_is_gone_fails_at_once(
    worker: run_job.Worker, client_id: uuid.UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = platform.submit(worker, client_id, "numbers")
    monkeypatch.undo()

    done = platform.run(worker, job)

    assert (done.status, done.error_code) == (FAILED, "template_rejected")
    assert_says_nothing(done)


@pytest.mark.parametrize("rows", [10, 100_000], ids=["one object", "parts"])
def test_an_s3_that_refuses_is_tried_again(
    worker: run_job.Worker, client_id: uuid.UUID, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**arguments: Any) -> Any:
        raise ConnectionError("secret cause")

    for operation in ("put_object", "upload_part"):
        monkeypatch.setattr(worker.bucket.client, operation, refuse)
    job = platform.submit(worker, client_id, "numbers", {"rows": rows})

    found = [fail_once(worker, job) for _ in range(4)]

    assert [each.status for each in found] == [QUEUED, QUEUED, QUEUED, FAILED]
    assert found[-1].error_code == "internal_error"
    assert_says_nothing(found[-1])
    assert platform.left_in(worker.bucket) == []


def test_the_log_has_the_cause_under_the_jobs_id(
    worker: run_job.Worker, client_id: uuid.UUID, caplog: pytest.LogCaptureFixture
) -> None:
    job = platform.submit(worker, client_id, "numbers", {"raise_at": 1, "state": "22012"})

    with caplog.at_level(logging.ERROR):
        platform.run(worker, job)

    [record] = [each for each in caplog.records if each.message == "job failed"]
    assert record.exc_info is not None
    assert "secret cause" in str(record.exc_info[1])

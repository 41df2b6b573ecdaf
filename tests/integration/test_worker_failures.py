"""How an attempt ends that does not publish: its class, what is tried again, what anybody reads."""

import contextlib
import dataclasses
import datetime as dt
import re
import threading
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from jobplatform import errors, faults, jobs, results, settings
from jobplatform.usecases import ring_due_jobs, run_job
from tests.helpers import bells, platform, reports, store
from tests.helpers.s3 import StrictS3, refused

pytestmark = pytest.mark.usefixtures("templates")
QUEUED, FAILED, SUCCEEDED = (
    jobs.JobStatus.QUEUED,
    jobs.JobStatus.FAILED,
    jobs.JobStatus.SUCCEEDED,
)
SECOND = dt.timedelta(seconds=1)
DELAYS = store.SETTINGS.retry_delays
# What no customer may read: SQL, names of code, hosts, drivers, causes.
INTERNAL = re.compile(
    r"select|relation|function|column|copy|\.py|traceback|127\.0\.0\.1|host|sqlstate|pg8000|botocore"
    r"|secret|error at|exception|bucket|s3|postgres",
    re.IGNORECASE,
)


def attempt(worker: run_job.Worker, job: jobs.Job) -> jobs.Job:
    """One attempt, due or not."""
    store.change(
        worker.engine, job.id, available_at=dt.datetime.now(dt.UTC) - dt.timedelta(seconds=1)
    )
    assert run_job.run_job(worker, seconds_left=lambda: 600.0) is not None
    return platform.get(worker, job)


def assert_safe(job: jobs.Job) -> None:
    assert job.error_message
    assert not INTERNAL.search(job.error_message), job.error_message


def assert_clean(worker: run_job.Worker, backends: reports.Backends) -> None:
    """Neither an object nor a part nor a session is left of a failed attempt."""
    assert platform.left_in(worker.bucket) == []
    store.until(lambda: not backends.pids(), what="the export's session is closed")


def test_a_worker_that_is_told_to_end_gives_its_job_back_and_that_is_no_attempt(
    worker: run_job.Worker, client_id: uuid.UUID, backends: reports.Backends
) -> None:
    job = platform.submit(worker, client_id, "slow", {"seconds": 60})
    running = reports.Running(worker)
    store.until(lambda: backends.pids("pg_sleep"), what="the query runs")
    heard = bells.listen(worker.queue)

    run_job.give_back(worker)

    given = platform.get(worker, job)
    assert (given.status, given.attempts, given.checkpoint) == (QUEUED, 0, None)
    assert heard == [bells.Bell(job.id, 0)]
    [only] = store.attempts(worker.engine, job.id)
    assert (only["outcome"], only["error_code"]) == ("retry", None)
    running.join()
    assert platform.get(worker, job) == given
    assert worker.in_hand == set()
    assert_clean(worker, backends)


def test_a_worker_without_a_job_has_nothing_to_give_back(worker: run_job.Worker) -> None:
    run_job.give_back(worker)


PERMANENT = {
    "undefined table": ("anything", {"sql": "1 FROM no_such_table"}, "no_such_table"),
    "undefined column": ("anything", {"sql": "no_such_column"}, "no_such_column"),
    "syntax": ("anything", {"sql": "1 FROM WHERE"}, "syntax error"),
    "missing permission": ("anything", {"sql": "* FROM pg_authid"}, "permission denied"),
    "division by zero": ("numbers", {"rows": 9, "raise_at": 5, "state": "22012"}, "secret cause"),
    "invalid text": ("numbers", {"rows": 9, "raise_at": 5, "state": "22P02"}, "secret cause"),
    "a write": ("anything", {"sql": "setval('canary', 1)"}, "read-only"),
}


@pytest.mark.parametrize("name", PERMANENT)
def test_what_trying_again_cannot_help_fails_at_once(
    worker: run_job.Worker, client_id: uuid.UUID, backends: reports.Backends, name: str
) -> None:
    backends.run("CREATE SEQUENCE IF NOT EXISTS canary")
    template, parameters, cause = PERMANENT[name]
    job = platform.submit(worker, client_id, template, parameters)

    done = attempt(worker, job)

    assert (done.status, done.attempts) == (FAILED, 1)
    assert_safe(done)
    [only] = store.attempts(worker.engine, job.id)
    assert (only["outcome"], only["error_code"]) == ("failed", done.error_code)
    assert cause in only["error_detail"]
    assert_clean(worker, backends)


def test_parameters_that_a_newer_template_refuses_fail_at_once(
    worker: run_job.Worker, client_id: uuid.UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = platform.submit(worker, client_id, "numbers", {"rows": 7})

    class Stricter(reports.Params):
        rows: int = 1
        reason: str

    newer = dataclasses.replace(reports.TEMPLATES["numbers"], params=Stricter)
    reports.install(monkeypatch, {"numbers": newer})

    done = attempt(worker, job)

    assert (done.status, done.error_code) == (FAILED, "template_rejected")
    assert_safe(done)
    [only] = store.attempts(worker.engine, job.id)
    assert "reason" in only["error_detail"]


def test_a_template_that_was_taken_away_fails_at_once(
    worker: run_job.Worker, client_id: uuid.UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = platform.submit(worker, client_id, "numbers")
    monkeypatch.undo()

    done = attempt(worker, job)

    assert (done.status, done.error_code) == (FAILED, "template_rejected")


@pytest.mark.parametrize("raised", [ValueError("secret cause"), TypeError("secret cause")])
@pytest.mark.parametrize("template", ["numbers", "python_rows"])
def test_a_template_that_refuses_its_parameters_fails_at_once(
    worker: run_job.Worker,
    client_id: uuid.UUID,
    monkeypatch: pytest.MonkeyPatch,
    backends: reports.Backends,
    template: str,
    raised: Exception,
) -> None:
    def refuse(*_: object) -> Any:
        raise raised

    changed = {"numbers": {"query": refuse}, "python_rows": {"rows": refuse}}
    broken = dataclasses.replace(reports.TEMPLATES[template], **changed[template])
    reports.install(monkeypatch, {template: broken})
    job = platform.submit(worker, client_id, template)

    done = attempt(worker, job)

    assert (done.status, done.error_code) == (FAILED, "template_rejected")
    assert_safe(done)
    assert "secret cause" in store.attempts(worker.engine, job.id)[0]["error_detail"]
    assert_clean(worker, backends)


TRANSIENT = {
    "serialization failure": "40001",
    "deadlock": "40P01",
    "cancelled by recovery": "57014",
    "disk full": "53100",
    "out of memory": "53200",
    "too many connections": "53300",
    "shutdown": "57P01",
    "crash": "57P02",
    "starting up": "57P03",
    "lock not available": "55P03",
    "I/O error": "58030",
    "internal error": "XX000",
}


@pytest.mark.parametrize("name", TRANSIENT)
def test_what_may_pass_is_tried_again(
    worker: run_job.Worker, client_id: uuid.UUID, backends: reports.Backends, name: str
) -> None:
    parameters = {"rows": 20_000, "raise_at": 10_000, "state": TRANSIENT[name]}
    job = platform.submit(worker, client_id, "numbers", parameters)

    found = attempt(worker, job)

    assert (found.status, found.attempts, found.error_code) == (QUEUED, 1, None)
    [only] = store.attempts(worker.engine, job.id)
    assert (only["outcome"], only["error_code"]) == ("retry", "transient_error")
    assert "secret cause" in only["error_detail"]
    assert_clean(worker, backends)


def test_an_error_that_stays_is_tried_after_each_delay_and_then_fails(
    worker: run_job.Worker, client_id: uuid.UUID, backends: reports.Backends
) -> None:
    parameters = {"rows": 20_000, "raise_at": 10_000, "state": "40001"}
    job = platform.submit(worker, client_id, "numbers", parameters)
    heard = bells.listen(worker.queue)

    for delay in DELAYS:
        before = dt.datetime.now(dt.UTC)
        found = attempt(worker, job)
        assert found.status is QUEUED
        assert dt.timedelta(0) <= found.available_at - before - delay < 5 * SECOND
        assert heard.pop() == bells.Bell(job.id, int(delay.total_seconds()))
    done = attempt(worker, job)

    assert (done.status, done.attempts, done.error_code) == (FAILED, 4, "database_error")
    assert_safe(done)
    tries = store.attempts(worker.engine, job.id)
    assert [each["outcome"] for each in tries] == ["retry", "retry", "retry", "failed"]
    assert all("40001" in each["error_detail"] for each in tries)
    assert_clean(worker, backends)


def test_an_error_that_passes_is_forgotten(
    worker: run_job.Worker, client_id: uuid.UUID, s3: StrictS3
) -> None:
    """Two attempts meet a broken S3; the third one's bytes are those of an untroubled job."""

    def broken(number: int) -> None:
        if number <= 2:
            raise refused("UploadPart", "InternalError", "We encountered an internal error.", 500)

    s3.fail("UploadPart", broken)
    job = platform.submit(worker, client_id, "numbers", {"rows": 100_000})

    assert [attempt(worker, job).status for _ in range(3)] == [QUEUED, QUEUED, SUCCEEDED]

    done = platform.get(worker, job)
    assert (done.error_code, done.error_message, done.attempts) == (None, None, 3)
    stored = platform.read(worker.bucket, done)
    line = b"x" * 100
    assert stored == b"n,padding\n" + b"".join(b"%d,%s\n" % (n, line) for n in range(1, 100_001))
    assert s3.uploads == {}


S3_CALLS = {
    "PutObject": 10,
    "CreateMultipartUpload": 100_000,
    "UploadPart": 100_000,
    "CompleteMultipartUpload": 100_000,
}


@pytest.mark.parametrize("code", ["SlowDown", "InternalError", "AccessDenied", "no connection"])
@pytest.mark.parametrize("operation", S3_CALLS)
def test_an_s3_that_fails_means_another_attempt(
    worker: run_job.Worker,
    client_id: uuid.UUID,
    s3: StrictS3,
    backends: reports.Backends,
    operation: str,
    code: str,
) -> None:
    def broken(number: int) -> None:
        if code == "no connection":
            raise ConnectionError("secret cause")
        raise refused(operation, code, "secret cause", 503)

    s3.fail(operation, broken)
    job = platform.submit(worker, client_id, "numbers", {"rows": S3_CALLS[operation]})

    found = attempt(worker, job)

    assert found.status is QUEUED
    assert "secret cause" in store.attempts(worker.engine, job.id)[0]["error_detail"]
    assert_clean(worker, backends)
    assert s3.uploads == {}


def test_what_could_not_be_aborted_is_removed_by_the_dispatcher(
    worker: run_job.Worker, client_id: uuid.UUID, s3: StrictS3
) -> None:
    def broken(number: int) -> None:
        raise refused("any", "InternalError", "We encountered an internal error.", 500)

    s3.fail("CompleteMultipartUpload", broken)
    s3.fail("AbortMultipartUpload", broken)
    job = platform.submit(worker, client_id, "numbers", {"rows": 100_000})

    assert attempt(worker, job).status is QUEUED
    assert len(platform.left_in(worker.bucket)) == 1
    s3.failures.clear()
    ring_due_jobs.clean_attempts(
        worker.engine, worker.bucket, worker_life=worker.jobs.worker_life, limit=10
    )

    assert platform.left_in(worker.bucket) == []


def test_a_manifest_that_cannot_be_written_means_another_attempt_and_no_orphan(
    worker: run_job.Worker, client_id: uuid.UUID, s3: StrictS3
) -> None:
    """The object is whole by then, under the key of an attempt that did not publish."""

    def broken(number: int) -> None:
        if number == 2:
            raise refused("PutObject", "InternalError", "We encountered an internal error.", 500)

    s3.fail("PutObject", broken)
    job = platform.submit(worker, client_id, "numbers", {"rows": 5})

    assert attempt(worker, job).status is QUEUED
    done = attempt(worker, job)
    ring_due_jobs.clean_attempts(
        worker.engine, worker.bucket, worker_life=worker.jobs.worker_life, limit=10
    )

    assert done.status is SUCCEEDED
    assert done.result is not None
    assert sorted(platform.left_in(worker.bucket)) == [
        done.result.key,
        done.result.key + ".manifest.json",
    ]


def test_a_session_that_the_server_ends_means_another_attempt(
    worker: run_job.Worker, client_id: uuid.UUID, backends: reports.Backends
) -> None:
    job = platform.submit(worker, client_id, "slow", {"seconds": 60})
    running = reports.Running(worker)
    pids = store.until(lambda: backends.pids("COPY"))

    backends.terminate(pids)

    running.join(10)
    found = platform.get(worker, job)
    assert (found.status, found.attempts) == (QUEUED, 1)
    assert_clean(worker, backends)


def test_a_database_of_the_adopter_that_is_away_means_another_attempt(
    worker: run_job.Worker, client_id: uuid.UUID
) -> None:
    away = settings.DataDatabaseSettings(url="postgresql://nobody@127.0.0.1:1/data")
    job = platform.submit(worker, client_id, "numbers", {"rows": 5})

    found = attempt(dataclasses.replace(worker, data=away), job)

    assert (found.status, found.attempts) == (QUEUED, 1)
    assert attempt(worker, job).status is SUCCEEDED


@contextlib.contextmanager
def platform_sessions_end(worker: run_job.Worker, data: reports.Backends) -> Iterator[None]:
    """The platform's own sessions are ended by the server, as a failover does."""
    with worker.engine.connect() as conn:
        [[name]] = conn.exec_driver_sql("SELECT current_database()").all()
    worker.engine.dispose()
    yield
    data.run(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        f" WHERE datname = '{name}' AND application_name = 'tests'"
    )


@pytest.mark.parametrize(
    "at", ["claim.after", "export.started", "upload.before_complete", "publish.before"]
)
def test_a_platform_database_that_fails_over_in_the_middle_costs_nothing(
    worker: run_job.Worker,
    client_id: uuid.UUID,
    backends: reports.Backends,
    monkeypatch: pytest.MonkeyPatch,
    at: str,
) -> None:
    job = platform.submit(worker, client_id, "numbers", {"rows": 1_000})

    def point(name: str) -> None:
        if name == at:
            with platform_sessions_end(worker, backends):
                pass

    monkeypatch.setattr(faults, "point", point)

    done = attempt(worker, job)

    assert (done.status, done.attempts) == (SUCCEEDED, 1)


def test_a_commit_whose_answer_was_lost_stays_committed(
    worker: run_job.Worker, client_id: uuid.UUID
) -> None:
    """The publish went through, but the worker was told that it did not."""
    job = platform.submit(worker, client_id, "numbers", {"rows": 10})

    with store.answer_lost("UPDATE jobplatform.attempts"):
        run_job.run_job(worker, seconds_left=lambda: 60.0)

    done = platform.get(worker, job)
    assert done.status is SUCCEEDED
    ring_due_jobs.clean_attempts(
        worker.engine, worker.bucket, worker_life=worker.jobs.worker_life, limit=10
    )
    assert platform.read(worker.bucket, done).count(b"\n") == 11
    assert store.attempts(worker.engine, job.id)[0]["outcome"] == "published"


def test_a_claim_whose_answer_was_lost_is_made_again(
    worker: run_job.Worker, client_id: uuid.UUID
) -> None:
    """Nobody knows that the job was given away, until its lease is over."""
    job = platform.submit(worker, client_id, "numbers", {"rows": 10})

    with (
        store.answer_lost("attempt_token"),
        pytest.raises(errors.ServiceUnavailable),
    ):
        run_job.run_job(worker, seconds_left=lambda: 60.0)
    assert platform.get(worker, job).status is jobs.JobStatus.RUNNING
    store.age(worker.engine, 2 * store.LEASE, job.id)
    ring_due_jobs.ring_due_jobs(
        engine=worker.engine, queue=worker.queue, bucket=worker.bucket, settings=worker.jobs
    )
    done = attempt(worker, job)

    assert (done.status, done.attempts) == (SUCCEEDED, 2)


def test_a_worker_that_lost_its_job_before_publishing_leaves_no_object(
    worker: run_job.Worker, client_id: uuid.UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = platform.submit(worker, client_id, "numbers", {"rows": 10})
    put_manifest = results.Bucket.put_manifest

    def put_and_lose(bucket: results.Bucket, key: str, manifest: Mapping[str, Any]) -> None:
        put_manifest(bucket, key, manifest)
        store.change(worker.engine, job.id, attempt_token=uuid.uuid4())

    monkeypatch.setattr(results.Bucket, "put_manifest", put_and_lose)

    run_job.run_job(worker, seconds_left=lambda: 60.0)

    assert platform.get(worker, job).status is jobs.JobStatus.RUNNING
    assert platform.left_in(worker.bucket) == []


@pytest.mark.parametrize("limit", ["max_rows", "max_bytes"])
@pytest.mark.parametrize("template", ["numbers", "python_rows"])
def test_a_result_that_is_too_large_fails_for_good(
    worker: run_job.Worker,
    client_id: uuid.UUID,
    monkeypatch: pytest.MonkeyPatch,
    backends: reports.Backends,
    template: str,
    limit: str,
) -> None:
    allowed = {"max_rows": 1_000, "max_bytes": 100_000}[limit]
    limited = dataclasses.replace(reports.TEMPLATES[template], **{limit: allowed})
    reports.install(monkeypatch, {template: limited})
    fits = platform.submit(
        worker, client_id, template, {"rows": 900 if limit == "max_bytes" else allowed}
    )
    assert attempt(worker, fits).status is SUCCEEDED
    kept = len(platform.left_in(worker.bucket))
    job = platform.submit(worker, client_id, template, {"rows": 1_001})

    done = attempt(worker, job)

    assert (done.status, done.error_code, done.attempts) == (FAILED, "result_too_large", 1)
    assert_safe(done)
    assert len(platform.left_in(worker.bucket)) == kept
    store.until(lambda: not backends.pids(), what="the export's session is closed")


def test_a_heartbeat_that_fails_now_and_then_does_not_end_the_attempt(
    worker: run_job.Worker, client_id: uuid.UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    beats: list[int] = []
    enough = threading.Event()

    def point(name: str) -> None:
        if name == "heartbeat":
            beats.append(1)
            if len(beats) > 6:
                enough.set()
            if len(beats) % 2:
                raise OSError("secret cause")
        elif name == "publish.before":
            assert enough.wait(20)

    monkeypatch.setattr(faults, "point", point)
    job = platform.submit(worker, client_id, "numbers", {"rows": 10})

    assert attempt(worker, job).status is SUCCEEDED


def test_a_healthy_job_is_never_rescued_however_long_it_runs(
    worker: run_job.Worker, client_id: uuid.UUID
) -> None:
    """Thirty leases long, with a dispatcher that looks all the time."""
    short = settings.JobSettings(
        lease=dt.timedelta(milliseconds=200), heartbeat=dt.timedelta(milliseconds=20)
    )
    patient = dataclasses.replace(worker, jobs=short)
    job = platform.submit(patient, client_id, "slow", {"seconds": 6})
    running = reports.Running(patient)
    store.until(lambda: platform.get(worker, job).status is jobs.JobStatus.RUNNING)

    rescued = ticks = 0
    while running.is_alive:
        tick = ring_due_jobs.ring_due_jobs(
            engine=worker.engine, queue=worker.queue, bucket=worker.bucket, settings=short
        )
        rescued += tick.rescued
        ticks += 1
    running.join()

    done = platform.get(worker, job)
    assert (rescued, done.status, done.attempts) == (0, SUCCEEDED, 1)
    assert done.started_at is not None
    assert done.finished_at is not None
    assert done.finished_at - done.started_at > 30 * short.lease
    assert ticks > 30


def test_a_job_without_heartbeats_is_rescued_while_it_runs(
    worker: run_job.Worker, client_id: uuid.UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other side of it: a paused worker loses its job, and publishes nothing when it wakes."""
    asleep, wake = threading.Event(), threading.Event()

    def point(name: str) -> None:
        if name == "heartbeat":
            wake.wait(30)
        elif name == "upload.before_complete" and not asleep.is_set():
            asleep.set()
            assert wake.wait(30)

    monkeypatch.setattr(faults, "point", point)
    job = platform.submit(worker, client_id, "numbers", {"rows": 10})
    zombie = reports.Running(worker)
    assert asleep.wait(10)
    store.age(worker.engine, 2 * store.LEASE, job.id)
    assert (
        ring_due_jobs.ring_due_jobs(
            engine=worker.engine, queue=worker.queue, bucket=worker.bucket, settings=worker.jobs
        ).rescued
        == 1
    )
    monkeypatch.setattr(faults, "point", lambda name: None)
    won = attempt(dataclasses.replace(worker, name="winner"), job)
    assert won.status is SUCCEEDED
    before = platform.read(worker.bucket, won)

    wake.set()
    zombie.join()

    after = platform.get(worker, job)
    assert after == won
    assert platform.read(worker.bucket, after) == before
    outcomes = {each["worker"]: each["outcome"] for each in store.attempts(worker.engine, job.id)}
    assert outcomes == {"test-worker": "worker_lost", "winner": "published"}
    # Its object goes at the latest when it cannot be alive any more.
    store.age(worker.engine, worker.jobs.worker_life)
    ring_due_jobs.clean_attempts(
        worker.engine, worker.bucket, worker_life=worker.jobs.worker_life, limit=10
    )
    assert after.result is not None
    assert {key.removesuffix(".manifest.json") for key in platform.left_in(worker.bucket)} == {
        after.result.key
    }


def test_what_a_customer_can_read_is_one_of_a_few_sentences() -> None:
    """All of them, from the code itself: none has anything of the inside."""
    sentences: list[str] = []
    pending: list[type[errors.PermanentFailure]] = [errors.PermanentFailure]
    while pending:
        kind = pending.pop()
        pending += kind.__subclasses__()
        sentences.append(kind.safe_message)

    assert len(sentences) > 2
    assert not [text for text in sentences if INTERNAL.search(text)]

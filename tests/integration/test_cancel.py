"""Cancelling: within five seconds, wherever the job is, and nothing is left of it."""

import dataclasses
import datetime as dt
import random
import threading
import time
import uuid
from collections.abc import Callable

import pytest

from jobplatform import errors, faults, jobs, settings
from jobplatform.usecases import cancel_job, ring_due_jobs, run_job
from tests.helpers import platform, reports, store
from tests.helpers.s3 import StrictS3

pytestmark = pytest.mark.usefixtures("templates")
CANCELLED, SUCCEEDED = jobs.JobStatus.CANCELLED, jobs.JobStatus.SUCCEEDED


@pytest.fixture
def worker(worker: run_job.Worker) -> run_job.Worker:
    """With the heartbeat of production: it is what the five seconds rest on."""
    return dataclasses.replace(worker, jobs=settings.JobSettings())


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set when the heartbeat has told the work to stop."""
    told = threading.Event()
    interrupt = run_job._Attempt._interrupt

    def tell(attempt: run_job._Attempt, reason: errors.ExecutionError) -> None:
        interrupt(attempt, reason)
        told.set()

    monkeypatch.setattr(run_job._Attempt, "_interrupt", tell)
    return told


def cancel(worker: run_job.Worker, job: jobs.Job) -> jobs.Job:
    return cancel_job.cancel_job(
        job.id, client_id=job.client_id, engine=worker.engine, settings=worker.jobs
    )


def clean(worker: run_job.Worker) -> None:
    """What the dispatcher does a minute later at most."""
    ring_due_jobs.clean_attempts(
        worker.engine, worker.bucket, worker_life=worker.jobs.worker_life, limit=100
    )


def assert_nothing_left(worker: run_job.Worker, job: jobs.Job) -> None:
    found = platform.get(worker, job)
    assert (found.status, found.result, found.error_code) == (CANCELLED, None, None)
    assert found.checkpoint is None
    clean(worker)
    assert platform.left_in(worker.bucket) == []
    for attempt in store.attempts(worker.engine, job.id):
        assert attempt["cleaned_at"] is not None


def test_a_queued_job_is_cancelled_at_once(worker: run_job.Worker, client_id: uuid.UUID) -> None:
    job = platform.submit(worker, client_id, "numbers")

    answer = cancel(worker, job)

    assert answer.status is CANCELLED
    assert answer.finished_at is not None
    assert run_job.run_job(worker, seconds_left=lambda: 60.0) is None
    assert store.transitions(worker.engine, job.id) == [("queued", "cancelled")]


def test_a_scheduled_and_a_retrying_job_are_cancelled_at_once(
    worker: run_job.Worker, client_id: uuid.UUID
) -> None:
    later = dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)
    scheduled = platform.submit(worker, client_id, "numbers", run_at=later)
    retrying = platform.submit(worker, client_id, "numbers")
    claimed = store.claim(worker.engine)
    assert claimed is not None
    store.requeue(worker.engine, claimed)

    assert cancel(worker, scheduled).status is CANCELLED
    assert cancel(worker, retrying).status is CANCELLED


def test_a_running_query_is_cancelled_in_the_database_within_5_seconds(
    worker: run_job.Worker, client_id: uuid.UUID, backends: reports.Backends
) -> None:
    job = platform.submit(worker, client_id, "slow", {"seconds": 60})
    running = reports.Running(worker)
    [pid] = store.until(lambda: backends.pids("COPY"))
    asked = time.monotonic()

    assert cancel(worker, job).status is jobs.JobStatus.RUNNING

    store.until(lambda: platform.get(worker, job).is_final, seconds=5)
    store.until(lambda: pid not in backends.pids(), seconds=5 - (time.monotonic() - asked))
    running.join()
    assert_nothing_left(worker, job)


def test_a_query_that_begins_just_as_the_cancel_arrives_is_cancelled_too(
    worker: run_job.Worker,
    client_id: uuid.UUID,
    backends: reports.Backends,
    monkeypatch: pytest.MonkeyPatch,
    interrupted: threading.Event,
) -> None:
    """The heartbeat finds no query to cancel: it comes between two of them."""
    job = platform.submit(worker, client_id, "slow", {"seconds": 60})

    def wait_for_the_heartbeat(name: str) -> None:
        if name == "export.started":
            cancel(worker, job)
            assert interrupted.wait(10)

    monkeypatch.setattr(faults, "point", wait_for_the_heartbeat)
    running = reports.Running(worker)
    assert interrupted.wait(10)

    running.join(10)

    assert backends.pids() == []
    assert_nothing_left(worker, job)


def test_a_cancel_during_an_upload_leaves_no_part(
    worker: run_job.Worker,
    client_id: uuid.UUID,
    s3: StrictS3,
    backends: reports.Backends,
    interrupted: threading.Event,
) -> None:
    uploading, go_on = threading.Event(), threading.Event()

    def wait(number: int) -> None:
        if number == 2:
            uploading.set()
            assert go_on.wait(30)

    s3.fail("UploadPart", wait)
    job = platform.submit(worker, client_id, "numbers", {"rows": 400_000})
    running = reports.Running(worker)
    assert uploading.wait(20)
    cancel(worker, job)
    asked = time.monotonic()

    # S3 is slow, which a heartbeat does not wait for.
    assert interrupted.wait(5)
    go_on.set()

    store.until(lambda: platform.get(worker, job).is_final, seconds=5)
    assert time.monotonic() - asked < 5
    running.join()
    store.until(lambda: not backends.pids(), what="no session is left")
    assert_nothing_left(worker, job)
    assert s3.uploads == {}


def test_a_row_generator_is_cancelled(
    worker: run_job.Worker, client_id: uuid.UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    going = threading.Event()

    def endless(params: reports.Params, read: object) -> object:
        while True:
            going.set()
            yield 1, "x" * 100

    endless_template = dataclasses.replace(reports.TEMPLATES["python_rows"], rows=endless)
    reports.install(monkeypatch, {"python_rows": endless_template})
    job = platform.submit(worker, client_id, "python_rows")
    running = reports.Running(worker)
    assert going.wait(10)

    cancel(worker, job)

    store.until(lambda: platform.get(worker, job).is_final, seconds=5)
    running.join()
    assert_nothing_left(worker, job)


@pytest.mark.parametrize("rows", [10, 100_000], ids=["one object", "parts"])
@pytest.mark.parametrize(
    "at", ["claim.after", "upload.before_complete", "upload.after_complete", "publish.before"]
)
def test_a_cancel_before_the_end_wins(
    worker: run_job.Worker,
    client_id: uuid.UUID,
    monkeypatch: pytest.MonkeyPatch,
    at: str,
    rows: int,
) -> None:
    job = platform.submit(worker, client_id, "numbers", {"rows": rows})
    answers: list[jobs.Job] = []

    def point(name: str) -> None:
        if name == at:
            answers.append(cancel(worker, job))

    monkeypatch.setattr(faults, "point", point)

    run_job.run_job(worker, seconds_left=lambda: 600.0)

    assert [answer.status for answer in answers] == [jobs.JobStatus.RUNNING]
    assert_nothing_left(worker, job)
    assert store.transitions(worker.engine, job.id)[-1] == ("running", "cancelled")


def test_a_cancel_after_the_end_is_refused_and_changes_nothing(
    worker: run_job.Worker, client_id: uuid.UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = platform.submit(worker, client_id, "numbers", {"rows": 10})
    refused: list[BaseException] = []

    def point(name: str) -> None:
        if name == "publish.after":
            with pytest.raises(errors.JobNotCancellable) as caught:
                cancel(worker, job)
            refused.append(caught.value)

    monkeypatch.setattr(faults, "point", point)

    done = platform.run(worker, job)

    assert len(refused) == 1
    assert done.status is SUCCEEDED
    clean(worker)
    assert platform.read(worker.bucket, done).count(b"\n") == 11


@pytest.mark.parametrize("seed", range(8))
def test_a_race_of_cancel_and_publish_has_one_winner(
    worker: run_job.Worker, client_id: uuid.UUID, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Whatever the client was told is what state and bucket say."""
    job = platform.submit(worker, client_id, "numbers", {"rows": 10})
    near = threading.Event()
    monkeypatch.setattr(faults, "point", lambda name: name == "publish.before" and near.set())

    def cancel_in_time() -> bool:
        near.wait(10)
        threading.Event().wait(random.Random(seed).random() * 0.02)
        try:
            cancel(worker, job)
        except errors.JobNotCancellable:
            return False
        return True

    _, accepted = store.at_once(
        [lambda: bool(run_job.run_job(worker, seconds_left=lambda: 60.0)), cancel_in_time]
    )

    found = platform.get(worker, job)
    assert found.status is (CANCELLED if accepted else SUCCEEDED)
    clean(worker)
    assert bool(platform.left_in(worker.bucket)) == (not accepted)


def test_a_second_cancel_is_the_same_as_the_first(
    worker: run_job.Worker, client_id: uuid.UUID, backends: reports.Backends
) -> None:
    job = platform.submit(worker, client_id, "slow", {"seconds": 60})
    running = reports.Running(worker)
    store.until(lambda: backends.pids("COPY"))

    first, second = cancel(worker, job), cancel(worker, job)

    assert first.cancel_requested_at == second.cancel_requested_at is not None
    running.join(5)
    assert cancel(worker, job).status is CANCELLED
    assert_nothing_left(worker, job)


def test_a_job_whose_worker_is_dead_is_cancelled_by_the_dispatcher(
    worker: run_job.Worker, client_id: uuid.UUID
) -> None:
    job = platform.submit(worker, client_id, "numbers")
    assert store.claim(worker.engine) is not None
    cancel(worker, job)
    store.age(worker.engine, worker.jobs.lease * 2)

    ring_due_jobs.ring_due_jobs(
        engine=worker.engine, queue=worker.queue, bucket=worker.bucket, settings=worker.jobs
    )

    assert platform.get(worker, job).status is CANCELLED
    assert store.claim(worker.engine) is None


@pytest.mark.parametrize("how", ["transient", "last attempt", "permanent"])
def test_a_cancel_meets_an_error_of_the_same_moment(
    worker: run_job.Worker,
    client_id: uuid.UUID,
    monkeypatch: pytest.MonkeyPatch,
    backends: reports.Backends,
    how: str,
) -> None:
    """A cancelled job is not tried again; one that fails at that moment has one end as well."""
    state = "22012" if how == "permanent" else "40001"
    job = platform.submit(worker, client_id, "numbers", {"rows": 10, "raise_at": 5, "state": state})
    if how == "last attempt":
        store.change(worker.engine, job.id, attempts=3)
    discard: Callable[..., None] = run_job._Attempt._discard

    def cancel_first(attempt: run_job._Attempt, **options: bool) -> None:
        cancel(worker, job)
        discard(attempt, **options)

    monkeypatch.setattr(run_job._Attempt, "_discard", cancel_first)

    run_job.run_job(worker, seconds_left=lambda: 60.0)

    found = platform.get(worker, job)
    assert found.status is (CANCELLED if how == "transient" else jobs.JobStatus.FAILED)
    clean(worker)
    assert platform.left_in(worker.bucket) == []

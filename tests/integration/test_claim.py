"""Who gets a job, and what a token that is no longer the job's can do: nothing."""

import datetime as dt
import time
import uuid
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa

from jobplatform import database, faults, job_store, jobs, settings
from jobplatform.usecases import run_job
from tests.helpers import bells, platform, store

SECOND = dt.timedelta(seconds=1)


def test_claims_at_once_give_each_job_to_one_worker(
    engine: sa.Engine, address: settings.DatabaseSettings, client_id: uuid.UUID
) -> None:
    expected = {store.add(engine, client_id) for _ in range(25)}
    own = database.create_engine(address, application_name="workers")
    try:

        def work() -> list[uuid.UUID]:
            taken = []
            while (job := store.claim(own)) is not None:
                taken.append(job.id)
            return taken

        taken = store.at_once([work] * 10)
    finally:
        own.dispose()

    claimed = [job_id for some in taken for job_id in some]
    assert sorted(claimed) == sorted(expected)
    assert store.count(engine, "attempts") == 25


def test_ten_doorbells_for_one_job_make_one_claim(
    engine: sa.Engine, address: settings.DatabaseSettings, client_id: uuid.UUID
) -> None:
    job_id = store.add(engine, client_id)

    claimed = [job for job in store.at_once([lambda: store.claim(engine)] * 10) if job]

    assert [job.id for job in claimed] == [job_id]
    assert store.get(engine, job_id).attempts == 1


def test_a_claim_does_not_wait_for_another_of_the_same_client(
    engine: sa.Engine, client_id: uuid.UUID
) -> None:
    first, second = store.add(engine, client_id), store.add(engine, client_id)

    with engine.connect() as slow, slow.begin():
        taken = job_store.claim(
            slow, token=uuid.uuid4(), worker="slow", lease=store.LEASE, weights={}
        )
        with engine.begin() as quick:
            quick.execute(sa.text("SET LOCAL lock_timeout = '1ms'"))
            other = job_store.claim(
                quick, token=uuid.uuid4(), worker="quick", lease=store.LEASE, weights={}
            )

    assert taken is not None
    assert other is not None
    assert (taken.id, other.id) == (first, second)


def test_jobs_of_a_client_go_in_the_order_in_which_they_are_due(
    engine: sa.Engine, client_id: uuid.UUID
) -> None:
    now = dt.datetime.now(dt.UTC)
    ids = [store.add(engine, client_id) for _ in range(3)]
    for job_id, ago in zip(ids, (5, 20, 10), strict=True):
        store.change(engine, job_id, available_at=now - ago * SECOND)

    claimed = [store.claim(engine) for _ in range(3)]

    assert [job.id for job in claimed if job] == [ids[1], ids[2], ids[0]]


def test_nothing_due_is_nothing_claimed(engine: sa.Engine, client_id: uuid.UUID) -> None:
    assert store.claim(engine) is None

    store.add(engine, client_id, run_at=dt.datetime.now(dt.UTC) + dt.timedelta(minutes=1))

    assert store.claim(engine) is None
    assert store.count(engine, "attempts") == 0


def answer(worker: run_job.Worker, bell: uuid.UUID) -> int:
    """A worker comes for the doorbell of this job."""
    return run_job.drain(worker, bell=bell, seconds_left=lambda: 60.0, clock=time.monotonic)


def test_a_doorbell_that_finds_nothing_is_dropped(
    worker: run_job.Worker, client_id: uuid.UUID
) -> None:
    later = dt.datetime.now(dt.UTC) + dt.timedelta(minutes=10)
    heard = bells.listen(worker.queue)

    for bell in (uuid.uuid4(), store.add(worker.engine, client_id, run_at=later)):
        assert answer(worker, bell) == 0

    assert heard == []


def test_a_doorbell_that_is_a_moment_early_rings_again_in_time(
    worker: run_job.Worker, client_id: uuid.UUID
) -> None:
    soon = dt.datetime.now(dt.UTC) + 3 * SECOND
    job_id = store.add(worker.engine, client_id, run_at=soon)
    heard = bells.listen(worker.queue)

    assert answer(worker, job_id) == 0

    assert heard == [bells.Bell(job_id, 3)]


def test_a_doorbell_for_a_job_that_somebody_holds_does_not_ring_at_once(
    worker: run_job.Worker, client_id: uuid.UUID
) -> None:
    """Otherwise it would come back again and again for as long as the row is locked."""
    job_id = store.add(worker.engine, client_id)
    heard = bells.listen(worker.queue)
    with worker.engine.connect() as holder, holder.begin():
        holder.execute(
            sa.text("SELECT FROM jobplatform.jobs WHERE id = :id FOR UPDATE"), {"id": job_id}
        )

        assert answer(worker, job_id) == 0

    assert heard == [bells.Bell(job_id, 1)]


def test_a_doorbell_is_not_kept_alive_by_other_jobs_that_are_almost_due(
    worker: run_job.Worker, client_id: uuid.UUID
) -> None:
    """Under a steady schedule some job always is, and doorbells would become ever more."""
    soon = dt.datetime.now(dt.UTC) + 3 * SECOND
    scheduled = [store.add(worker.engine, client_id, run_at=soon) for _ in range(3)]
    done = store.add(worker.engine, client_id)
    assert store.claim(worker.engine) is not None
    heard = bells.listen(worker.queue)

    # Doorbells come back as often as they are rung for.
    waiting = [*scheduled, done, done, uuid.UUID(int=0)]
    for bell in waiting:
        assert answer(worker, bell) == 0
    for _ in range(5):
        again, heard[:] = list(heard), []
        for each in again:
            assert answer(worker, each.job_id) == 0

    assert sorted(each.job_id for each in heard) == sorted(scheduled)


def test_a_job_that_is_tried_again_has_one_doorbell(
    worker: run_job.Worker, client_id: uuid.UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(name: str) -> None:
        if name == "export.started":
            raise ConnectionError("the network is gone")

    monkeypatch.setattr(faults, "point", fail)
    job_id = store.add(worker.engine, client_id)
    heard = bells.listen(worker.queue)

    assert answer(worker, job_id) == 1

    assert heard == [bells.Bell(job_id, 5)]


def test_a_doorbell_that_cannot_be_rung_again_is_no_failure(
    worker: run_job.Worker, client_id: uuid.UUID
) -> None:
    soon = dt.datetime.now(dt.UTC) + 3 * SECOND
    job_id = store.add(worker.engine, client_id, run_at=soon)
    worker.queue.url += "-that-is-not-there"

    assert answer(worker, job_id) == 0


def test_a_claim_is_a_new_attempt_with_a_lease(engine: sa.Engine, client_id: uuid.UUID) -> None:
    job_id = store.add(engine, client_id)

    job = store.claim(engine, worker="worker-7")

    assert job is not None
    assert (job.id, job.status, job.attempts) == (job_id, jobs.JobStatus.RUNNING, 1)
    assert job.lease_expires_at is not None
    assert job.started_at is not None
    assert job.lease_expires_at - job.started_at == store.LEASE
    [attempt] = store.attempts(engine, job_id)
    assert attempt["token"] == job.attempt_token
    assert (attempt["number"], attempt["worker"]) == (1, "worker-7")


Write = Callable[[sa.Engine, jobs.Job], Any]
WRITES: dict[str, Write] = {
    "heartbeat": store.heartbeat,
    "publish": store.publish,
    "requeue": store.requeue,
    "fail": store.end,
    "cancel": lambda engine, job: store.end(engine, job, jobs.JobStatus.CANCELLED),
    "drop checkpoint": lambda engine, job: _in(
        engine, lambda conn: job_store.drop_checkpoint(conn, job.id, token=store.token_of(job))
    ),
    "take over": lambda engine, job: _in(
        engine, lambda conn: job_store.note_taken_over(conn, job.id, token=store.token_of(job))
    ),
    "close the attempt": lambda engine, job: _in(
        engine,
        lambda conn: job_store.close_attempt(conn, store.token_of(job), outcome="published"),
    ),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES.keys())
@pytest.mark.parametrize("after", ["rescued", "claimed again", "ended", "published", "cancelled"])
def test_a_token_that_is_no_longer_the_jobs_changes_nothing(
    engine: sa.Engine, client_id: uuid.UUID, write: Write, after: str
) -> None:
    job_id = store.add(engine, client_id)
    lost = store.claim(engine)
    assert lost is not None
    store.change(engine, job_id, lease_expires_at=dt.datetime.now(dt.UTC) - SECOND)
    with engine.begin() as conn:
        job_store.rescue(conn, [job_id], delays=[SECOND], retention=store.DAY)
    if after != "rescued":
        store.change(engine, job_id, available_at=dt.datetime.now(dt.UTC) - SECOND)
        second = store.claim(engine, worker="test")
        assert second is not None
        if after == "ended":
            assert store.end(engine, second)
        elif after == "published":
            assert store.publish(engine, second)
        elif after == "cancelled":
            assert store.cancel(engine, job_id)
            assert store.end(engine, second, jobs.JobStatus.CANCELLED)
    before = store.row(engine, job_id), store.attempts(engine, job_id)

    assert write(engine, lost) in (None, False)

    assert (store.row(engine, job_id), store.attempts(engine, job_id)) == before


@pytest.mark.parametrize("name", ["heartbeat", "publish", "requeue", "fail", "cancel"])
def test_another_jobs_token_changes_nothing_either(
    engine: sa.Engine, client_id: uuid.UUID, name: str
) -> None:
    store.add(engine, client_id)
    store.add(engine, client_id)
    mine, other = store.claim(engine), store.claim(engine)
    assert mine is not None
    assert other is not None
    before = store.row(engine, other.id)
    forged = jobs.Job(**{**vars(other), "attempt_token": mine.attempt_token})

    assert WRITES[name](engine, forged) in (None, False)

    assert store.row(engine, other.id) == before


def test_a_publish_and_a_rescue_at_once_have_one_winner(
    engine: sa.Engine, client_id: uuid.UUID
) -> None:
    for _ in range(20):
        job_id = store.add(engine, client_id)
        job = store.claim(engine, lease=dt.timedelta(microseconds=1))
        assert job is not None

        def rescue(job_id: uuid.UUID = job_id) -> bool:
            with engine.begin() as conn:
                return bool(job_store.rescue(conn, [job_id], delays=[SECOND], retention=store.DAY))

        published, rescued = store.at_once(
            [lambda job=job: store.publish(engine, job), rescue]  # type: ignore[misc]
        )

        assert published != rescued
        status = store.get(engine, job_id).status
        assert status is (jobs.JobStatus.SUCCEEDED if published else jobs.JobStatus.QUEUED)
        store.cancel(engine, job_id)


def test_attempts_are_counted_in_postgres_however_often_the_doorbell_was_delivered(
    worker: run_job.Worker, client_id: uuid.UUID
) -> None:
    job = platform.submit(worker, client_id, "delays_by_carrier", {"month": 1})
    store.change(
        worker.engine, job.id, available_at=dt.datetime.now(dt.UTC) + dt.timedelta(minutes=10)
    )
    for _ in range(20):
        assert run_job.run_job(worker, seconds_left=lambda: 60.0) is None
    store.change(worker.engine, job.id, available_at=dt.datetime.now(dt.UTC) - SECOND)

    done = platform.run(worker, job)

    assert (done.status, done.attempts) == (jobs.JobStatus.SUCCEEDED, 1)


@pytest.mark.parametrize(("counted", "expected"), [(True, 1), (False, 0)])
def test_an_attempt_that_is_not_to_be_counted_is_not(
    engine: sa.Engine, client_id: uuid.UUID, counted: bool, expected: int
) -> None:
    job_id = store.add(engine, client_id)
    job = store.claim(engine)
    assert job is not None

    assert store.requeue(engine, job, counted=counted)

    assert store.get(engine, job_id).attempts == expected
    assert len(store.attempts(engine, job_id)) == 1


def _in(engine: sa.Engine, call: Callable[[sa.Connection], Any]) -> Any:
    with engine.begin() as conn:
        return call(conn)


def _messages(worker: run_job.Worker) -> int:
    """How many doorbells are in the queue, delayed ones included."""
    names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesDelayed"]
    found = worker.queue._client.get_queue_attributes(
        QueueUrl=worker.queue.url, AttributeNames=names
    )["Attributes"]
    return sum(int(found[name]) for name in names)

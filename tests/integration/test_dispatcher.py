"""The dispatcher's tick: rescue and ring, whatever was lost and whoever else is at it."""

import datetime as dt
import threading
import uuid
from collections.abc import Callable, Iterator

import pytest
import sqlalchemy as sa

from jobplatform import job_store, jobs, results, settings
from jobplatform import queue as queues
from jobplatform.usecases import ring_due_jobs
from tests.helpers import bells, store

SECOND = dt.timedelta(seconds=1)
MINUTE = dt.timedelta(minutes=1)
Tick = Callable[[], ring_due_jobs.Tick]


@pytest.fixture
def tick(engine: sa.Engine, queue: queues.Queue, bucket: results.Bucket) -> Tick:
    return lambda: ring_due_jobs.ring_due_jobs(
        engine=engine, queue=queue, bucket=bucket, settings=store.SETTINGS
    )


def lost(engine: sa.Engine, client_id: uuid.UUID, *, attempts: int = 1) -> jobs.Job:
    """A running job, on its so-manieth attempt, whose lease ended a second ago."""
    store.add(engine, client_id)
    job = store.claim(engine)
    assert job is not None
    past = dt.datetime.now(dt.UTC) - SECOND
    store.change(engine, job.id, lease_expires_at=past, attempts=attempts)
    return store.get(engine, job.id)


@pytest.mark.parametrize(("attempt", "delay"), [(1, 5 * SECOND), (2, 30 * SECOND), (3, 2 * MINUTE)])
def test_a_lost_job_is_queued_again_after_the_delay_of_its_attempt(
    engine: sa.Engine, client_id: uuid.UUID, tick: Tick, attempt: int, delay: dt.timedelta
) -> None:
    job = lost(engine, client_id, attempts=attempt)
    before = dt.datetime.now(dt.UTC)

    assert tick().rescued == 1

    found = store.get(engine, job.id)
    assert found.status is jobs.JobStatus.QUEUED
    assert dt.timedelta(0) <= found.available_at - before - delay < 5 * SECOND
    assert (found.attempts, found.attempt_token) == (attempt, None)
    [left] = store.attempts(engine, job.id)
    assert (left["outcome"], left["error_code"]) == ("worker_lost", "worker_lost")
    assert left["finished_at"] is not None


def test_a_worker_lost_on_the_last_attempt_fails_the_job(
    engine: sa.Engine, client_id: uuid.UUID, tick: Tick
) -> None:
    job = lost(engine, client_id, attempts=4)

    tick()

    found = store.get(engine, job.id)
    assert (found.status, found.error_code) == (jobs.JobStatus.FAILED, "worker_lost")
    assert found.error_message is not None
    assert found.finished_at is not None
    assert found.expires_at == found.finished_at + store.SETTINGS.retention


@pytest.mark.parametrize("attempt", [1, 4])
def test_a_lost_job_that_was_to_be_cancelled_is_cancelled(
    engine: sa.Engine, client_id: uuid.UUID, tick: Tick, attempt: int
) -> None:
    job = lost(engine, client_id, attempts=attempt)
    store.cancel(engine, job.id)

    tick()

    found = store.get(engine, job.id)
    assert (found.status, found.error_code) == (jobs.JobStatus.CANCELLED, None)
    assert store.transitions(engine, job.id)[-1] == ("running", "cancelled")


def test_four_lost_workers_make_four_attempts_and_a_failed_job(
    engine: sa.Engine, client_id: uuid.UUID, tick: Tick
) -> None:
    job_id = store.add(engine, client_id)
    for _ in range(4):
        assert store.claim(engine) is not None
        store.age(engine, store.LEASE + SECOND)
        tick()
        store.age(engine, 3 * MINUTE)

    assert store.claim(engine) is None
    assert store.get(engine, job_id).status is jobs.JobStatus.FAILED
    left = store.attempts(engine, job_id)
    assert [each["number"] for each in left] == [1, 2, 3, 4]
    assert {each["outcome"] for each in left} == {"worker_lost"}
    assert store.transitions(engine, job_id) == [
        *[("queued", "running"), ("running", "queued")] * 3,
        ("queued", "running"),
        ("running", "failed"),
    ]


def test_a_lease_that_has_not_ended_is_left_alone(
    engine: sa.Engine, client_id: uuid.UUID, tick: Tick
) -> None:
    store.add(engine, client_id)
    job = store.claim(engine)
    assert job is not None
    # It began hours ago; what counts is when it was last heard of.
    store.age(engine, dt.timedelta(hours=10))
    assert store.heartbeat(engine, job) is False

    assert tick().rescued == 0

    assert store.get(engine, job.id).status is jobs.JobStatus.RUNNING


def test_a_heartbeat_between_the_look_and_the_rescue_keeps_the_job(
    engine: sa.Engine, client_id: uuid.UUID
) -> None:
    job = lost(engine, client_id)
    with engine.begin() as conn:
        found = job_store.expired_leases(conn, limit=10)
    assert store.heartbeat(engine, job) is False

    with engine.begin() as conn:
        done = job_store.rescue(conn, found, delays=[SECOND], retention=store.DAY)

    assert (found, done) == ([job.id], [])
    assert store.get(engine, job.id).status is jobs.JobStatus.RUNNING


def test_many_dispatchers_at_once_rescue_each_job_once(
    engine: sa.Engine,
    address: settings.DatabaseSettings,
    client_id: uuid.UUID,
    tick: Tick,
) -> None:
    ids = [lost(engine, client_id).id for _ in range(40)]

    ticks = store.at_once([tick] * 4)

    assert sum(each.rescued for each in ticks) == 40
    for job_id in ids:
        assert store.transitions(engine, job_id) == [("queued", "running"), ("running", "queued")]


@pytest.fixture
def poison(engine: sa.Engine) -> Iterator[Callable[[uuid.UUID, str], None]]:
    """Makes every update of one row fail, with an SQLSTATE."""

    def make(job_id: uuid.UUID, state: str) -> None:
        with engine.begin() as conn:
            conn.exec_driver_sql(
                "CREATE OR REPLACE FUNCTION jobplatform.poison() RETURNS trigger LANGUAGE plpgsql"
                f" AS $$ BEGIN RAISE EXCEPTION 'poison' USING ERRCODE = '{state}'; END $$"
            )
            conn.exec_driver_sql(
                "CREATE TRIGGER poison BEFORE UPDATE ON jobplatform.jobs FOR EACH ROW"
                f" WHEN (OLD.id = '{job_id}') EXECUTE FUNCTION jobplatform.poison()"
            )

    yield make
    with engine.begin() as conn:
        conn.exec_driver_sql("DROP FUNCTION IF EXISTS jobplatform.poison() CASCADE")


@pytest.mark.parametrize("state", ["23514", "57014", "40P01", "XX000", "P0001"])
def test_a_row_that_cannot_be_rescued_does_not_stop_the_others(
    engine: sa.Engine,
    client_id: uuid.UUID,
    queue: queues.Queue,
    tick: Tick,
    poison: Callable[[uuid.UUID, str], None],
    state: str,
) -> None:
    ids = [lost(engine, client_id).id for _ in range(5)]
    due = store.add(engine, client_id)
    store.age(engine, MINUTE, due)
    poison(ids[2], state)
    heard = bells.listen(queue)

    assert tick().rescued == 4

    assert [store.get(engine, job_id).status.value for job_id in ids] == [
        "queued", "queued", "running", "queued", "queued",
    ]  # fmt: skip
    assert due in {bell.job_id for bell in heard}


@pytest.mark.parametrize("state", ["23514", "57014"])
def test_a_row_that_cannot_be_marked_does_not_stop_the_doorbells_of_others(
    engine: sa.Engine,
    client_id: uuid.UUID,
    queue: queues.Queue,
    tick: Tick,
    poison: Callable[[uuid.UUID, str], None],
    state: str,
) -> None:
    ids = [store.add(engine, client_id) for _ in range(25)]
    store.age(engine, MINUTE)
    poison(ids[0], state)
    heard = bells.listen(queue)

    assert tick().rung == 25

    assert {bell.job_id for bell in heard} == set(ids)


@pytest.mark.parametrize("broken", ["_rescue", "_ring", "clean_attempts"])
def test_a_duty_that_fails_stops_no_other_and_is_raised_in_the_end(
    engine: sa.Engine,
    client_id: uuid.UUID,
    queue: queues.Queue,
    bucket: results.Bucket,
    tick: Tick,
    monkeypatch: pytest.MonkeyPatch,
    broken: str,
) -> None:
    job = lost(engine, client_id)
    due = store.add(engine, client_id)
    store.age(engine, MINUTE, due)
    bucket.client.put_object(Bucket=bucket.name, Key=jobs.result_key(job, store.token_of(job)))
    heard = bells.listen(queue)

    def fail(*_: object, **__: object) -> int:
        raise OSError("broken")

    monkeypatch.setattr(ring_due_jobs, broken, fail)

    with pytest.raises(ExceptionGroup, match="a tick was incomplete"):
        tick()

    rescued = store.get(engine, job.id).status is jobs.JobStatus.QUEUED
    rung = due in {bell.job_id for bell in heard}
    cleaned = bucket.client.list_objects_v2(Bucket=bucket.name)["KeyCount"] == 0
    assert rescued == (broken != "_rescue")
    assert rung == (broken != "_ring")
    # What was not rescued has left nothing yet.
    assert cleaned == (broken == "_ring")


def test_a_lost_doorbell_is_rung_again(
    engine: sa.Engine, client_id: uuid.UUID, queue: queues.Queue, tick: Tick
) -> None:
    job_id = store.add(engine, client_id)
    heard = bells.listen(queue)

    tick()
    assert heard == []  # it was submitted a moment ago, and its own doorbell is on the way

    store.age(engine, 6 * SECOND)
    tick()
    assert heard == [bells.Bell(job_id, 0)]


def test_a_doorbell_is_not_rung_twice_before_its_time(
    engine: sa.Engine, client_id: uuid.UUID, queue: queues.Queue, tick: Tick
) -> None:
    job_id = store.add(engine, client_id)
    store.age(engine, MINUTE)
    heard = bells.listen(queue)
    again_after = store.SETTINGS.ring_again_after

    tick()
    tick()
    store.age(engine, again_after - MINUTE)
    tick()
    assert len(heard) == 1

    store.age(engine, MINUTE + SECOND)
    tick()
    assert heard == [bells.Bell(job_id, 0)] * 2


@pytest.mark.parametrize("wait", [8.2, 10.0, 17.4, 59.9, 74.0])
def test_a_job_due_within_the_next_minute_gets_a_doorbell_for_its_second(
    engine: sa.Engine, client_id: uuid.UUID, queue: queues.Queue, tick: Tick, wait: float
) -> None:
    run_at = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=wait)
    job_id = store.add(engine, client_id, run_at=run_at)
    heard = bells.listen(queue)

    before = dt.datetime.now(dt.UTC)
    tick()
    after = dt.datetime.now(dt.UTC)

    [bell] = heard
    assert bell.job_id == job_id
    delay = dt.timedelta(seconds=bell.delay)
    # Not before it is due, and hardly later.
    assert after + delay >= run_at
    assert before + delay < run_at + 2 * SECOND


def test_a_job_due_in_90_seconds_starts_within_5_of_its_time(
    engine: sa.Engine, client_id: uuid.UUID, queue: queues.Queue, tick: Tick
) -> None:
    """Ticks a minute apart, at any phase: the clock is moved by moving the rows."""
    for phase in range(0, 60, 7):
        run_at = dt.datetime.now(dt.UTC) + 90 * SECOND
        job_id = store.add(engine, client_id, run_at=run_at)
        heard = bells.listen(queue)
        gone = dt.timedelta(0)
        starts: list[dt.timedelta] = []
        store.age(engine, phase * SECOND, job_id)
        gone += phase * SECOND
        for _ in range(3):
            before = len(heard)
            tick()
            starts += [gone + bell.delay * SECOND for bell in heard[before:]]
            store.age(engine, MINUTE, job_id)
            gone += MINUTE

        assert [start for start in starts if 89 * SECOND <= start <= 95 * SECOND], starts
        assert store.claim(engine) is not None


def test_a_job_far_in_the_future_is_not_rung_for(
    engine: sa.Engine, client_id: uuid.UUID, queue: queues.Queue, tick: Tick
) -> None:
    store.add(engine, client_id, run_at=dt.datetime.now(dt.UTC) + 2 * MINUTE)
    heard = bells.listen(queue)

    assert tick().rung == 0
    assert heard == []


@pytest.mark.parametrize("status", ["running", "failed", "cancelled"])
def test_only_queued_jobs_are_rung_for(
    engine: sa.Engine, client_id: uuid.UUID, queue: queues.Queue, tick: Tick, status: str
) -> None:
    job_id = store.add(engine, client_id)
    if status == "cancelled":
        store.cancel(engine, job_id)
    else:
        job = store.claim(engine)
        assert job is not None
        if status == "failed":
            store.end(engine, job)
    store.age(engine, 30 * SECOND)
    heard = bells.listen(queue)

    tick()

    assert heard == []


def test_what_sqs_did_not_take_is_rung_at_the_next_tick(
    engine: sa.Engine, client_id: uuid.UUID, queue: queues.Queue, tick: Tick
) -> None:
    ids = {store.add(engine, client_id) for _ in range(25)}
    store.age(engine, MINUTE)
    bells.break_entries(queue, every=3)

    rung = tick().rung

    assert rung == 25 - 4 - 4 - 2
    assert store.count(engine, "jobs", "rung_at IS NULL") == 10
    total = rung
    while again := tick().rung:
        total += again
    # The first of every batch is refused for ever; all others came through.
    assert total == 24
    assert len(ids) == 25


def test_a_crash_between_the_bell_and_its_mark_rings_again(
    engine: sa.Engine,
    client_id: uuid.UUID,
    queue: queues.Queue,
    tick: Tick,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job_id = store.add(engine, client_id)
    store.age(engine, MINUTE)
    heard = bells.listen(queue)
    with monkeypatch.context() as patched:

        def die(*_: object) -> None:
            raise KeyboardInterrupt

        patched.setattr(job_store, "mark_rung", die)
        with pytest.raises(KeyboardInterrupt):
            tick()

    tick()

    assert heard == [bells.Bell(job_id, 0)] * 2
    assert store.claim(engine) is not None
    assert store.claim(engine) is None


def test_a_tick_holds_no_lock_that_a_submit_or_a_claim_would_wait_for(
    engine: sa.Engine,
    address: settings.DatabaseSettings,
    client_id: uuid.UUID,
    queue: queues.Queue,
    tick: Tick,
) -> None:
    """While the tick stands between two of its statements, with SQS slow, work goes on."""
    for _ in range(12):
        store.add(engine, client_id)
    job = lost(engine, client_id)
    store.age(engine, MINUTE)
    entered, leave = threading.Event(), threading.Event()

    def wait(**_: object) -> None:
        entered.set()
        leave.wait(30)

    queue._client.meta.events.register("before-call.sqs.SendMessageBatch", wait)
    ticking = threading.Thread(target=tick)
    ticking.start()
    try:
        assert entered.wait(30)
        with store.impatient(address) as own:
            store.add(own, client_id)
            assert store.claim(own) is not None
            assert store.cancel(own, job.id) is not None
    finally:
        leave.set()
        ticking.join(30)

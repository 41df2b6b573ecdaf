"""The purge: what is past its time leaves nothing, and nothing else is touched."""

import datetime as dt
import re
import threading
import uuid
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa

from jobplatform import client_store, job_store, jobs, results, settings
from jobplatform.usecases import purge as purging
from jobplatform.usecases import ring_due_jobs
from tests.conftest import new_client
from tests.helpers import platform, store

HOUR = dt.timedelta(hours=1)
RESULTS = settings.ResultSettings(bucket="results-bucket")
Purge = Callable[[], purging.Purged]


@pytest.fixture
def purge(engine: sa.Engine, bucket: results.Bucket) -> Purge:
    return lambda: run_purge(engine, bucket)


def run_purge(
    engine: sa.Engine,
    bucket: results.Bucket,
    *,
    seconds_left: Callable[[], float] = lambda: 900.0,
    now: dt.datetime | None = None,
) -> purging.Purged:
    return purging.purge(
        engine=engine,
        bucket=bucket,
        settings=store.SETTINGS,
        result_settings=RESULTS,
        now=now or dt.datetime.now(dt.UTC),
        seconds_left=seconds_left,
    )


def succeeded(
    engine: sa.Engine, bucket: results.Bucket, client_id: uuid.UUID, **changes: Any
) -> jobs.Job:
    """A job with its object and manifest in the bucket."""
    store.add(engine, client_id, **changes)
    job = store.claim(engine)
    assert job is not None
    key = jobs.result_key(job, store.token_of(job))
    for name in (key, results.manifest_key(key)):
        bucket.client.put_object(Bucket=bucket.name, Key=name, Body=b"a\n1\n")
    assert store.publish(engine, job)
    return store.get(engine, job.id)


def test_a_result_goes_when_its_time_and_the_grace_are_over(
    engine: sa.Engine, bucket: results.Bucket, client_id: uuid.UUID, purge: Purge
) -> None:
    job = succeeded(engine, bucket, client_id)

    store.age(engine, RESULTS.ttl + RESULTS.purge_grace - HOUR / 2)
    assert purge().results == 0
    assert len(platform.left_in(bucket)) == 2

    store.age(engine, HOUR)
    assert purge().results == 1
    assert platform.left_in(bucket) == []
    found = store.get(engine, job.id)
    assert found.status is jobs.JobStatus.SUCCEEDED
    assert found.result is not None
    assert found.result.deleted_at is not None
    assert purge() == purging.Purged()


def test_a_job_goes_when_its_retention_is_over_with_all_that_belongs_to_it(
    engine: sa.Engine, bucket: results.Bucket, client_id: uuid.UUID, purge: Purge
) -> None:
    succeeded(engine, bucket, client_id)
    store.age(engine, store.SETTINGS.retention - HOUR)
    purge()
    assert store.count(engine, "jobs") == 1

    store.age(engine, 2 * HOUR)

    assert purge().jobs == 1
    for table in ("jobs", "attempts", "transitions"):
        assert store.count(engine, table) == 0
    assert store.count(engine, "clients") == 1
    assert platform.left_in(bucket) == []


def test_one_purge_takes_result_and_job_where_both_are_past_their_time(
    engine: sa.Engine, bucket: results.Bucket, client_id: uuid.UUID, purge: Purge
) -> None:
    succeeded(engine, bucket, client_id)
    store.age(engine, store.SETTINGS.retention + store.DAY)

    done = purge()

    assert (done.results, done.jobs, done.complete) == (1, 1, True)
    assert platform.left_in(bucket) == []
    assert store.count(engine, "jobs") == 0


def test_a_key_is_free_again_after_its_24_hours(
    engine: sa.Engine, client_id: uuid.UUID, purge: Purge
) -> None:
    first = store.add(engine, client_id, idempotency_key="k")
    store.age(engine, 23 * HOUR)
    assert purge().keys == 0

    store.age(engine, 2 * HOUR)

    assert purge().keys == 1
    assert store.row(engine, first)["idempotency_key"] is None
    assert store.add(engine, client_id, idempotency_key="k") != first


@pytest.mark.parametrize("status", ["scheduled", "queued", "retrying", "running", "cancelling"])
def test_a_job_that_is_not_final_is_never_purged_whatever_its_times_say(
    engine: sa.Engine, bucket: results.Bucket, client_id: uuid.UUID, purge: Purge, status: str
) -> None:
    later = dt.datetime.now(dt.UTC) + 400 * store.DAY
    job_id = store.add(engine, client_id, run_at=later if status == "scheduled" else None)
    if status not in {"scheduled", "queued"}:
        job = store.claim(engine)
        assert job is not None
        if status == "retrying":
            store.requeue(engine, job)
        elif status == "cancelling":
            store.cancel(engine, job_id)
    past = dt.datetime.now(dt.UTC) - 1_000 * store.DAY
    # Not even with the end of another job's retention written on it, as a bug might.
    store.change(engine, job_id, expires_at=past, result_expires_at=past, created_at=past)
    if status == "scheduled":
        store.age(engine, 300 * store.DAY)
    before = store.row(engine, job_id)["status"]

    purge()

    assert store.row(engine, job_id)["status"] == before
    assert store.count(engine, "transitions") == len(store.transitions(engine, job_id))


def test_an_object_that_s3_does_not_delete_keeps_its_job(
    engine: sa.Engine, bucket: results.Bucket, client_id: uuid.UUID, purge: Purge
) -> None:
    stuck = succeeded(engine, bucket, client_id)
    others = [succeeded(engine, bucket, client_id) for _ in range(3)]
    assert stuck.result is not None
    store.age(engine, store.SETTINGS.retention + store.DAY)
    refuse = deny(bucket, stuck.result.key)

    done = purge()

    assert (done.results, done.jobs) == (3, 3)
    assert store.get(engine, stuck.id).status is jobs.JobStatus.SUCCEEDED
    assert stuck.result.key in platform.left_in(bucket)

    refuse.clear()
    assert purge().jobs == 1
    assert platform.left_in(bucket) == []
    assert len(others) == 3


def test_an_s3_that_is_down_stops_neither_keys_nor_jobs_without_objects(
    engine: sa.Engine,
    bucket: results.Bucket,
    client_id: uuid.UUID,
    purge: Purge,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept = succeeded(engine, bucket, client_id, idempotency_key="k")
    plain = store.add(engine, client_id)
    store.cancel(engine, plain)
    store.age(engine, store.SETTINGS.retention + store.DAY)
    with monkeypatch.context() as patched:

        def down(*_: object) -> None:
            raise OSError("S3 is down")

        patched.setattr(bucket, "delete", down)
        patched.setattr(bucket, "uploads_before", down)
        with pytest.raises(ExceptionGroup, match="a purge was incomplete") as caught:
            purge()

    assert len(caught.value.exceptions) == 2
    assert store.count(engine, "jobs") == 1
    assert store.row(engine, kept.id)["idempotency_key"] is None
    assert purge().jobs == 1


@pytest.mark.parametrize("point", ["after the objects", "after the mark"])
def test_a_purge_that_dies_between_s3_and_postgres_is_made_up_for(
    engine: sa.Engine,
    bucket: results.Bucket,
    client_id: uuid.UUID,
    purge: Purge,
    monkeypatch: pytest.MonkeyPatch,
    point: str,
) -> None:
    for _ in range(3):
        succeeded(engine, bucket, client_id)
    store.age(engine, store.SETTINGS.retention + store.DAY)
    name = {"after the objects": "mark_results_deleted", "after the mark": "delete_expired"}
    with monkeypatch.context() as patched:

        def die(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        patched.setattr(job_store, name[point], die)
        with pytest.raises(KeyboardInterrupt):
            purge()
    assert platform.left_in(bucket) == []
    assert store.count(engine, "jobs") == 3

    assert purge().jobs == 3
    assert store.count(engine, "jobs") == 0


def upload(bucket: results.Bucket, key: str) -> str:
    """An upload with one part that nobody finishes."""
    begun = bucket.client.create_multipart_upload(Bucket=bucket.name, Key=key)["UploadId"]
    bucket.client.upload_part(Bucket=bucket.name, Key=key, UploadId=begun, PartNumber=1, Body=b"x")
    return str(begun)


@pytest.mark.parametrize("kind", ["of a purged job", "of no form we know", "of an ended attempt"])
def test_an_upload_that_nobody_finished_is_ended_after_a_day(
    engine: sa.Engine, bucket: results.Bucket, client_id: uuid.UUID, kind: str
) -> None:
    if kind == "of an ended attempt":
        store.add(engine, client_id)
        job = store.claim(engine)
        assert job is not None
        key = jobs.result_key(job, store.token_of(job))
        assert store.end(engine, job)
        with engine.begin() as conn:
            # The dispatcher has been here; the upload was begun by a zombie after that.
            job_store.mark_cleaned(conn, [store.token_of(job)], worker_life=HOUR)
    else:
        name = uuid.uuid4() if kind == "of a purged job" else "something"
        key = f"results/{client_id}/{uuid.uuid4()}/{name}.csv"
    upload(bucket, key)

    assert run_purge(engine, bucket).uploads == 0
    tomorrow = dt.datetime.now(dt.UTC) + 25 * HOUR
    assert run_purge(engine, bucket, now=tomorrow).uploads == 1

    assert platform.left_in(bucket) == []


@pytest.mark.parametrize("handed_over", [False, True])
def test_an_upload_that_somebody_may_still_finish_is_left_alone(
    engine: sa.Engine, bucket: results.Bucket, client_id: uuid.UUID, handed_over: bool
) -> None:
    store.add(engine, client_id)
    job = store.claim(engine)
    assert job is not None
    token = store.token_of(job)
    key = jobs.result_key(job, token)
    upload(bucket, key)
    if handed_over:
        store.requeue(engine, job, checkpoint={"upload_token": str(token)})

    done = run_purge(engine, bucket, now=dt.datetime.now(dt.UTC) + 100 * HOUR)

    assert (done.uploads, done.attempts) == (0, 0)
    assert platform.left_in(bucket) == [key]


@pytest.mark.parametrize("by", ["dispatcher", "purge"])
@pytest.mark.parametrize("outcome", ["failed", "cancelled", "retry", "worker_lost"])
def test_what_an_attempt_left_is_removed(
    engine: sa.Engine,
    bucket: results.Bucket,
    client_id: uuid.UUID,
    outcome: str,
    by: str,
) -> None:
    store.add(engine, client_id)
    job = store.claim(engine)
    assert job is not None
    token = store.token_of(job)
    key = jobs.result_key(job, token)
    upload(bucket, key)
    for name in (key, results.manifest_key(key)):
        bucket.client.put_object(Bucket=bucket.name, Key=name, Body=b"x")
    stranger = key.replace(str(token), str(uuid.uuid4()))
    bucket.client.put_object(Bucket=bucket.name, Key=stranger, Body=b"x")
    match outcome:
        case "retry":
            store.requeue(engine, job)
        case "worker_lost":
            store.change(engine, job.id, lease_expires_at=dt.datetime.now(dt.UTC) - HOUR)
            with engine.begin() as conn:
                job_store.rescue(conn, [job.id], delays=[HOUR], retention=store.DAY)
        case _:
            store.end(engine, job, jobs.JobStatus(outcome))

    cleaned = clean(engine, bucket) if by == "dispatcher" else run_purge(engine, bucket).attempts

    assert cleaned == 1
    assert platform.left_in(bucket) == [stranger]
    assert clean(engine, bucket) == 0


def clean(engine: sa.Engine, bucket: results.Bucket) -> int:
    return ring_due_jobs.clean_attempts(
        engine, bucket, worker_life=store.SETTINGS.worker_life, limit=100
    )


def test_what_a_lost_worker_wrote_after_it_was_cleaned_up_after_is_found(
    engine: sa.Engine, bucket: results.Bucket, client_id: uuid.UUID
) -> None:
    store.add(engine, client_id)
    job = store.claim(engine)
    assert job is not None
    store.change(engine, job.id, lease_expires_at=dt.datetime.now(dt.UTC) - HOUR)
    with engine.begin() as conn:
        job_store.rescue(conn, [job.id], delays=[], retention=store.DAY)
    assert clean(engine, bucket) == 1
    # It was paused, not dead: it wakes up, writes its object, and then dies.
    zombies = jobs.result_key(job, store.token_of(job))
    bucket.client.put_object(Bucket=bucket.name, Key=zombies, Body=b"x")
    assert clean(engine, bucket) == 0
    store.age(engine, store.SETTINGS.worker_life + dt.timedelta(seconds=1))

    assert clean(engine, bucket) == 1

    assert platform.left_in(bucket) == []
    [attempt] = store.attempts(engine, job.id)
    assert attempt["cleaned_at"] is not None
    store.age(engine, store.SETTINGS.retention)
    assert run_purge(engine, bucket).jobs == 1


def test_a_job_of_which_something_may_be_left_in_s3_is_not_purged(
    engine: sa.Engine,
    bucket: results.Bucket,
    client_id: uuid.UUID,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store.add(engine, client_id)
    job = store.claim(engine)
    assert job is not None
    upload(bucket, jobs.result_key(job, store.token_of(job)))
    store.end(engine, job)
    store.age(engine, store.SETTINGS.retention + store.DAY)
    with monkeypatch.context() as patched:

        def down(*_: object) -> None:
            raise OSError("S3 is down")

        patched.setattr(bucket, "erase_attempt", down)
        done = run_purge(engine, bucket)
    assert (done.attempts, done.jobs) == (0, 0)
    assert store.count(engine, "jobs") == 1

    done = run_purge(engine, bucket)

    assert (done.attempts, done.jobs) == (1, 1)
    assert platform.left_in(bucket) == []


def test_an_upload_that_became_the_result_is_kept_and_goes_with_it(
    engine: sa.Engine, bucket: results.Bucket, client_id: uuid.UUID
) -> None:
    """A first worker handed its upload over; the second one published it."""
    job_id = store.add(engine, client_id)
    first = store.claim(engine)
    assert first is not None
    token = store.token_of(first)
    with engine.begin() as conn:
        job_store.requeue(
            conn, job_id, token=token, after=dt.timedelta(0), reason="handed over", counted=False,
            checkpoint={"upload_token": str(token)},
        )  # fmt: skip
        job_store.close_attempt(conn, token, outcome="handed_over")
    second = store.claim(engine)
    assert second is not None
    key = jobs.result_key(second, token)
    bucket.client.put_object(Bucket=bucket.name, Key=key, Body=b"x")
    assert store.publish(engine, second, key=key)

    assert clean(engine, bucket) == 0
    assert platform.left_in(bucket) == [key]

    store.age(engine, store.SETTINGS.retention + store.DAY)
    # The attempt can be cleaned once the result is deleted, and the job then.
    run_purge(engine, bucket)
    run_purge(engine, bucket)
    assert platform.left_in(bucket) == []
    assert store.count(engine, "jobs") == 0


def test_a_removed_client_leaves_nothing(
    engine: sa.Engine, bucket: results.Bucket, client_id: uuid.UUID, purge: Purge
) -> None:
    other = new_client(engine, "other")
    mine = succeeded(engine, bucket, client_id, idempotency_key="k")
    kept = succeeded(engine, bucket, other)
    scheduled = store.add(engine, client_id, run_at=dt.datetime.now(dt.UTC) + 100 * store.DAY)
    store.add(engine, client_id)
    running = store.claim(engine)
    assert running is not None
    upload(bucket, jobs.result_key(running, store.token_of(running)))
    with engine.begin() as conn:
        client_store.add_key(
            conn, client_id=client_id, key_sha256=b"k" * 32, api_key_id="key", plan="pro"
        )

    with engine.begin() as conn:
        assert client_store.remove(conn, client_id) == ["key"]
    assert store.get(engine, scheduled).status is jobs.JobStatus.CANCELLED
    purge()
    # The running one is told to stop, and goes when it has.
    assert store.heartbeat(engine, running) is True
    assert store.end(engine, running, jobs.JobStatus.CANCELLED)
    purge()

    assert store.count(engine, "jobs", f"client_id = '{client_id}'") == 0
    assert store.count(engine, "clients", f"id = '{client_id}'") == 0
    assert store.count(engine, "api_keys") == 0
    assert store.count(engine, "jobs") == 1
    assert kept.result is not None
    assert platform.left_in(bucket) == [
        kept.result.key,
        results.manifest_key(kept.result.key),
    ]
    assert mine.client_id == client_id


def test_a_removed_client_whose_job_ends_as_it_goes_leaves_nothing_either(
    engine: sa.Engine, bucket: results.Bucket, client_id: uuid.UUID, purge: Purge
) -> None:
    """Its jobs' retention may be over already while their results still have days to live."""
    job = succeeded(engine, bucket, client_id)
    store.change(engine, job.id, expires_at=dt.datetime.now(dt.UTC) - HOUR)
    with engine.begin() as conn:
        client_store.remove(conn, client_id)

    purge()

    assert platform.left_in(bucket) == []
    for table in ("jobs", "clients"):
        assert store.count(engine, table) == 0


def test_a_client_removed_between_two_hand_overs_leaves_nothing(
    engine: sa.Engine, bucket: results.Bucket, client_id: uuid.UUID, purge: Purge
) -> None:
    store.add(engine, client_id)
    job = store.claim(engine)
    assert job is not None
    upload(bucket, jobs.result_key(job, store.token_of(job)))
    assert store.requeue(engine, job, checkpoint={"upload_token": str(job.attempt_token)})
    with engine.begin() as conn:
        client_store.remove(conn, client_id)

    purge()

    assert platform.left_in(bucket) == []
    for table in ("jobs", "attempts", "clients"):
        assert store.count(engine, table) == 0


def test_the_checkpoint_of_a_job_that_has_ended_keeps_nothing(
    engine: sa.Engine, bucket: results.Bucket, client_id: uuid.UUID
) -> None:
    job_id = store.add(engine, client_id)
    job = store.claim(engine)
    assert job is not None
    token = store.token_of(job)
    upload(bucket, jobs.result_key(job, token))
    assert store.end(engine, job)
    store.change(engine, job_id, checkpoint={"upload_token": str(token)})

    with engine.begin() as conn:
        assert job_store.live_tokens(conn, [token]) == set()
        assert job_store.attempts_to_clean(conn, worker_life=HOUR, limit=1)


def test_an_upload_that_went_on_to_another_attempt_is_live_until_that_ends(
    engine: sa.Engine, client_id: uuid.UUID
) -> None:
    store.add(engine, client_id)
    first = store.claim(engine)
    assert first is not None
    token = store.token_of(first)
    assert store.requeue(
        engine, first, after=dt.timedelta(0), checkpoint={"upload_token": str(token)}
    )
    second = store.claim(engine)
    assert second is not None
    store.change(engine, second.id, checkpoint=None)

    with engine.begin() as conn:
        assert job_store.live_tokens(conn, [token, uuid.uuid4()]) == {token}
    assert store.end(engine, second)
    with engine.begin() as conn:
        assert job_store.live_tokens(conn, [token]) == set()


def test_every_step_takes_a_bounded_batch(
    engine: sa.Engine,
    bucket: results.Bucket,
    client_id: uuid.UUID,
    purge: Purge,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(purging, "_BATCH", 10)
    gone = new_client(engine, "gone")
    for owner in (client_id, gone):
        store.add_many(engine, owner, 35)
    with engine.begin() as conn:
        conn.exec_driver_sql(
            "UPDATE jobplatform.jobs SET status = 'cancelled', finished_at = now(),"
            " expires_at = now() - interval '1 day', idempotency_key = id::text,"
            " idempotency_expires_at = now() - interval '1 day'"
        )
        conn.exec_driver_sql(
            f"UPDATE jobplatform.jobs SET expires_at = now() + interval '1 day'"
            f" WHERE client_id = '{gone}'"
        )
        client_store.remove(conn, gone)
    counts: list[int] = []

    def count(conn: Any, cursor: Any, statement: str, *_: Any) -> None:
        if re.match(r"(UPDATE|DELETE FROM) jobplatform\.", statement):
            counts.append(cursor.rowcount)

    sa.event.listen(engine, "after_cursor_execute", count)

    done = purge()

    assert (done.keys, done.jobs, done.clients) == (70, 70, 1)
    assert max(counts) == 10
    assert sum(counts) == 35 + 70 + 70 + 1


def test_a_purge_stops_in_time_and_the_next_goes_on(
    engine: sa.Engine,
    bucket: results.Bucket,
    client_id: uuid.UUID,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(purging, "_BATCH", 10)
    store.add_many(engine, client_id, 50)
    with engine.begin() as conn:
        conn.exec_driver_sql(
            "UPDATE jobplatform.jobs SET status = 'cancelled', finished_at = now(),"
            " expires_at = now() - interval '1 day'"
        )
    # Time for the question before each of five steps that find nothing, and for three batches.
    left = iter([900.0] * 7)

    done = run_purge(engine, bucket, seconds_left=lambda: next(left, 20.0))

    assert not done.complete
    assert 10 <= done.jobs < 50
    assert run_purge(engine, bucket).jobs == 50 - done.jobs


def test_uploads_come_last_and_end_in_time_too(
    engine: sa.Engine, bucket: results.Bucket, client_id: uuid.UUID
) -> None:
    for number in range(3):
        upload(bucket, f"results/{client_id}/{uuid.uuid4()}/{number}.csv")
    succeeded(engine, bucket, client_id)
    store.age(engine, store.SETTINGS.retention + store.DAY)
    left = [900.0]

    def run_out(**_: Any) -> None:
        left[0] = 20.0

    bucket.client.meta.events.register("before-call.s3.AbortMultipartUpload", run_out)

    done = run_purge(
        engine, bucket, now=dt.datetime.now(dt.UTC) + 2 * store.DAY, seconds_left=lambda: left[0]
    )

    assert (done.jobs, done.uploads, done.complete) == (1, 1, False)
    assert len(platform.left_in(bucket)) == 2
    left[0] = 20.0
    listed: list[Any] = []
    bucket.client.meta.events.register(
        "before-call.s3.ListMultipartUploads", lambda **_: listed.append(1)
    )
    assert run_purge(engine, bucket, seconds_left=lambda: left[0]).uploads == 0
    assert listed == []


STEPS: dict[str, Callable[[sa.Connection], Any]] = {
    "keys": lambda conn: job_store.forget_expired_keys(conn, limit=500),
    "jobs": lambda conn: job_store.delete_expired(conn, limit=500),
    "clients": lambda conn: client_store.delete_removed(conn, limit=500),
    "hasten": lambda conn: client_store.hasten_removed(conn, limit=500),
}


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS.keys())
def test_a_batch_in_the_middle_of_its_transaction_delays_no_client(
    engine: sa.Engine,
    address: settings.DatabaseSettings,
    client_id: uuid.UUID,
    step: Callable[[sa.Connection], Any],
) -> None:
    """Submits, claims, cancels and lists meet no lock of it: they need not wait at all."""
    gone = new_client(engine, "gone")
    for owner in (client_id, gone):
        for number in range(20):
            store.add(engine, owner, idempotency_key=str(number))
    store.age(engine, 40 * store.DAY)
    with engine.begin() as conn:
        conn.exec_driver_sql(
            "UPDATE jobplatform.jobs SET status = 'cancelled', finished_at = created_at,"
            " expires_at = now() - interval '1 hour'"
            f" WHERE idempotency_key < '5' OR client_id = '{gone}'"
        )
        client_store.remove(conn, gone)
        if step is STEPS["clients"]:
            conn.exec_driver_sql(f"DELETE FROM jobplatform.jobs WHERE client_id = '{gone}'")
        if step is STEPS["hasten"]:
            conn.exec_driver_sql("UPDATE jobplatform.jobs SET expires_at = now() + interval '1 h'")
    with store.impatient(address) as own, engine.connect() as slow, slow.begin():
        assert step(slow) > 0

        store.add(own, client_id)
        store.add(own, client_id, idempotency_key="new")
        assert store.claim(own) is not None
        assert store.cancel(own, store.add(own, client_id)) is not None
        with own.begin() as conn:
            assert job_store.list_page(conn, client_id, limit=50)


def test_only_a_submit_with_the_very_key_that_is_being_freed_waits(
    engine: sa.Engine, address: settings.DatabaseSettings, client_id: uuid.UUID
) -> None:
    """It shows too that the engine of the test above would have noticed a lock."""
    store.add(engine, client_id, idempotency_key="old")
    store.age(engine, 2 * store.DAY)
    with store.impatient(address) as own, engine.connect() as slow, slow.begin():
        assert job_store.forget_expired_keys(slow, limit=500) == 1

        store.add(own, client_id, idempotency_key="other")
        with pytest.raises(sa.exc.DBAPIError, match="lock timeout"):
            store.add(own, client_id, idempotency_key="old")

    assert store.add(engine, client_id, idempotency_key="old")


@pytest.mark.parametrize("step", [STEPS["keys"], STEPS["jobs"], STEPS["hasten"]])
def test_a_batch_passes_over_what_somebody_else_holds(
    engine: sa.Engine,
    address: settings.DatabaseSettings,
    client_id: uuid.UUID,
    step: Callable[[sa.Connection], Any],
) -> None:
    ids = [store.add(engine, client_id, idempotency_key=str(number)) for number in range(3)]
    for job_id in ids:
        store.cancel(engine, job_id)
    store.age(engine, 40 * store.DAY)
    if step is STEPS["hasten"]:
        for job_id in ids:
            later = dt.datetime.now(dt.UTC) + store.DAY
            store.change(engine, job_id, expires_at=later)
        with engine.begin() as conn:
            client_store.remove(conn, client_id)
    with store.impatient(address) as own, engine.connect() as holder, holder.begin():
        holder.execute(
            sa.text("SELECT FROM jobplatform.jobs WHERE id = :id FOR UPDATE"), {"id": ids[0]}
        )

        with own.begin() as conn:
            assert step(conn) == 2

    with engine.begin() as conn:
        assert step(conn) == 1


def test_two_purges_at_once_do_no_harm(
    engine: sa.Engine, bucket: results.Bucket, client_id: uuid.UUID, purge: Purge
) -> None:
    for _ in range(5):
        succeeded(engine, bucket, client_id, idempotency_key=uuid.uuid4().hex)
    store.age(engine, store.SETTINGS.retention + store.DAY)

    both = store.at_once([purge, purge])

    assert sum(done.jobs for done in both) == 5
    assert platform.left_in(bucket) == []
    assert threading.active_count() < 50


def deny(bucket: results.Bucket, key: str) -> list[str]:
    """S3 refuses to delete these keys until the list is cleared."""
    denied = [key]

    def refuse(params: dict[str, Any], context: dict[str, Any], **_: Any) -> None:
        wanted = params["Delete"]["Objects"]
        context["denied"] = [each["Key"] for each in wanted if each["Key"] in denied]
        params["Delete"]["Objects"] = [each for each in wanted if each["Key"] not in denied]

    def report(parsed: dict[str, Any], context: dict[str, Any], **_: Any) -> None:
        parsed.setdefault("Errors", []).extend(
            {"Key": each, "Code": "AccessDenied", "Message": "no"} for each in context["denied"]
        )

    events = bucket.client.meta.events
    events.register("provide-client-params.s3.DeleteObjects", refuse)
    events.register("after-call.s3.DeleteObjects", report)
    return denied

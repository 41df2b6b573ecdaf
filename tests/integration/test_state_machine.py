"""The life of a job: what the database refuses, and any order of events beside a model of it."""

import dataclasses
import datetime as dt
import itertools
import uuid
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from jobplatform import job_store, jobs, operator_store, tables
from jobplatform.jobs import JobStatus
from tests.conftest import new_client
from tests.helpers import store

MINUTE = dt.timedelta(minutes=1)
LEASE = 10 * MINUTE
DELAYS = (10 * MINUTE, 20 * MINUTE, 40 * MINUTE)
RETENTION = 3 * store.DAY
TTL = store.DAY
KEY_TTL = store.DAY
GRACE = 60 * MINUTE
WORKER_LIFE = 30 * MINUTE


def rows_of(
    engine: sa.Engine, client_id: uuid.UUID, status: JobStatus, **changes: Any
) -> uuid.UUID:
    """A row of any state, as a bug might have written it."""
    job_id = store.add(engine, client_id)
    running = status is JobStatus.RUNNING
    final = status in jobs.FINAL
    now = dt.datetime.now(dt.UTC)
    values = {
        "status": status,
        "attempt_token": uuid.uuid4() if running else None,
        "lease_expires_at": now if running else None,
        "finished_at": now if final else None,
        "result_key": "key" if status is JobStatus.SUCCEEDED else None,
    }
    with engine.begin() as conn:
        conn.exec_driver_sql("ALTER TABLE jobplatform.jobs DISABLE TRIGGER job_transition")
        conn.execute(
            sa.update(tables.jobs).where(tables.jobs.c.id == job_id).values(**values, **changes)
        )
        conn.exec_driver_sql("ALTER TABLE jobplatform.jobs ENABLE TRIGGER job_transition")
    return job_id


@pytest.mark.parametrize(
    ("start", "target"),
    [pair for pair in itertools.product(JobStatus, JobStatus) if pair[0] is not pair[1]],
    ids=lambda status: status.value,
)
def test_the_database_lets_through_the_transitions_of_the_table_and_no_other(
    engine: sa.Engine, client_id: uuid.UUID, start: JobStatus, target: JobStatus
) -> None:
    job_id = rows_of(engine, client_id, start)
    now = dt.datetime.now(dt.UTC)
    values = {
        "status": target,
        "attempt_token": uuid.uuid4() if target is JobStatus.RUNNING else None,
        "lease_expires_at": now if target is JobStatus.RUNNING else None,
        "finished_at": now if target in jobs.FINAL else None,
        "result_key": "key",
    }

    if target in jobs.TRANSITIONS[start]:
        store.change(engine, job_id, **values)
        assert store.transitions(engine, job_id) == [(start.value, target.value)]
    else:
        with pytest.raises(sa.exc.DatabaseError, match="cannot go from"):
            store.change(engine, job_id, **values)
        assert store.transitions(engine, job_id) == []
        assert store.row(engine, job_id)["status"] == start


@pytest.mark.parametrize(
    ("status", "changes"),
    [
        (JobStatus.QUEUED, {"attempt_token": uuid.uuid4(), "lease_expires_at": sa.func.now()}),
        (JobStatus.RUNNING, {"attempt_token": None}),
        (JobStatus.RUNNING, {"lease_expires_at": None}),
        (JobStatus.RUNNING, {"finished_at": sa.func.now()}),
        (JobStatus.QUEUED, {"finished_at": sa.func.now()}),
        (JobStatus.FAILED, {"finished_at": None}),
        (JobStatus.SUCCEEDED, {"result_key": None}),
        (JobStatus.QUEUED, {"status": "paused"}),
    ],
)
def test_a_row_that_contradicts_itself_is_refused(
    engine: sa.Engine, client_id: uuid.UUID, status: JobStatus, changes: dict[str, Any]
) -> None:
    job_id = rows_of(engine, client_id, status)

    with pytest.raises(sa.exc.DatabaseError, match="check"):
        store.change(engine, job_id, **changes)


def test_the_audit_trail_is_complete_and_in_order(engine: sa.Engine, client_id: uuid.UUID) -> None:
    job_id = store.add(engine, client_id)
    first = store.claim(engine, worker="w1")
    assert first is not None
    store.requeue(engine, first, after=dt.timedelta(0), reason="retry after OSError")
    second = store.claim(engine, worker="w2")
    assert second is not None
    store.publish(engine, second)

    with engine.begin() as conn:
        trail = job_store.transitions_of(conn, job_id)
        tries = job_store.attempts_of(conn, job_id)

    assert [(each["from_status"], each["to_status"]) for each in trail] == [
        ("queued", "running"),
        ("running", "queued"),
        ("queued", "running"),
        ("running", "succeeded"),
    ]
    assert [each["reason"] for each in trail] == [
        "claimed", "retry after OSError", "claimed", "published",
    ]  # fmt: skip
    assert [each["attempt"] for each in trail] == [1, 1, 2, 2]
    moments = [each["at"] for each in trail]
    assert moments == sorted(moments)
    assert len(set(moments)) == 4
    assert {each["client_id"] for each in trail} == {client_id}
    assert [(each["number"], each["worker"], each["outcome"]) for each in tries] == [
        (1, "w1", "retry"),
        (2, "w2", "published"),
    ]


@dataclasses.dataclass
class Model:
    """What a job is expected to be; times are minutes from now, None where there is none."""

    key: str | None
    key_left: float | None
    available_in: float
    status: JobStatus = JobStatus.QUEUED
    token: uuid.UUID | None = None
    lease_left: float | None = None
    attempts: int = 0
    cancelling: bool = False
    ends_in: float | None = None
    result_left: float | None = None
    result_deleted: bool = False
    path: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    claims: int = 0
    unclean: dict[uuid.UUID, str] = dataclasses.field(default_factory=dict)
    """Attempts that ended without a result and were not cleaned up after."""

    def go(self, status: JobStatus) -> None:
        assert status in jobs.TRANSITIONS[self.status]
        self.path.append((self.status.value, status.value))
        self.status = status
        if status is not JobStatus.RUNNING:
            self.token = self.lease_left = None
        self.ends_in = minutes(RETENTION) if status in jobs.FINAL else None

    @property
    def is_due(self) -> bool:
        return self.status is JobStatus.QUEUED and self.available_in <= 0


def minutes(length: dt.timedelta) -> float:
    return length / MINUTE


# Mostly one with which something can happen, so that events meet.
WHICH = st.sampled_from([0, 0, 0, 0, 1, 1, 2, 5])


class Lives(RuleBasedStateMachine):
    """Each rule does something to the database and to the model; both have to agree after it."""

    def __init__(self, engine: sa.Engine) -> None:
        super().__init__()
        self.engine = engine
        self.model: dict[uuid.UUID, Model] = {}
        self.submitted: list[uuid.UUID] = []
        self.claimed: list[jobs.Job] = []

    @initialize()
    def start(self) -> None:
        with self.engine.begin() as conn:
            conn.exec_driver_sql("TRUNCATE jobplatform.clients CASCADE")
        self.clients = [new_client(self.engine, name) for name in ("a", "b")]
        self.keys: dict[tuple[int, str], uuid.UUID] = {}
        self.submit(0, None, 0)
        self.submit(1, None, 0)

    @rule(
        client=st.integers(0, 1),
        key=st.sampled_from([None, None, "k1", "k2"]),
        later=st.sampled_from([0, 15, 60]),
    )
    def submit(self, client: int, key: str | None, later: int) -> None:
        run_at = dt.datetime.now(dt.UTC) + later * MINUTE if later else None
        new = store.new_job(
            self.clients[client], idempotency_key=key, idempotency_ttl=KEY_TTL, run_at=run_at
        )
        owner = self.keys.get((client, key)) if key else None
        with self.engine.begin() as conn:
            made = job_store.insert(conn, new, request_hash="h", max_queued=1_000)
            if owner is None:
                assert made is not None
            else:
                assert made is None
                known = self.model[owner]
                named = job_store.find_by_key(conn, new.client_id, str(key))
                # A key whose time is over names nothing, though the purge has not come to it.
                assert known.key_left is not None
                assert (named.id if named else None) == (owner if known.key_left > 0 else None)
                return
        if key:
            self.keys[client, key] = new.id
        self.model[new.id] = Model(
            key=key, key_left=minutes(KEY_TTL) if key else None, available_in=later
        )
        self.submitted.append(new.id)

    @rule()
    def claim(self) -> None:
        job = store.claim(self.engine, lease=LEASE)
        due = {job_id for job_id, known in self.model.items() if known.is_due}
        if job is None:
            assert not due
            return
        assert job.id in due
        known = self.model[job.id]
        known.go(JobStatus.RUNNING)
        known.attempts += 1
        known.claims += 1
        known.token = store.token_of(job)
        known.lease_left = minutes(LEASE)
        self.claimed.append(job)

    def _attempt(self, which: int) -> jobs.Job:
        """One of those that were claimed; first those that still own their job."""
        return sorted(self.claimed[::-1], key=lambda job: self._holds(job) is None)[
            which % len(self.claimed)
        ]

    def _job(self, which: int, *wanted: JobStatus) -> uuid.UUID:
        """One of those that were submitted; first those in one of these states."""

        def is_wanted(job_id: uuid.UUID) -> bool:
            return job_id in self.model and self.model[job_id].status in wanted

        return sorted(self.submitted[::-1], key=lambda job_id: not is_wanted(job_id))[
            which % len(self.submitted)
        ]

    def _holds(self, job: jobs.Job) -> Model | None:
        """The job's model if this attempt still owns it."""
        known = self.model.get(job.id)
        return known if known is not None and known.token == job.attempt_token else None

    @precondition(lambda self: self.claimed)
    @rule(which=WHICH)
    def heartbeat(self, which: int) -> None:
        job = self._attempt(which)
        known = self._holds(job)
        answer = store.heartbeat(self.engine, job, lease=LEASE)
        assert answer == (None if known is None else known.cancelling)
        if known is not None:
            known.lease_left = minutes(LEASE)

    @precondition(lambda self: self.claimed)
    @rule(which=WHICH)
    def publish(self, which: int) -> None:
        job = self._attempt(which)
        known = self._holds(job)
        done = store.publish(self.engine, job, result_ttl=TTL, retention=RETENTION)
        assert done == (known is not None and not known.cancelling)
        if known is not None and done:
            known.go(JobStatus.SUCCEEDED)
            known.result_left = minutes(TTL)

    @precondition(lambda self: self.claimed)
    @rule(which=WHICH, counted=st.booleans(), after=st.sampled_from([0, 5, 30]))
    def requeue(self, which: int, counted: bool, after: int) -> None:
        job = self._attempt(which)
        known = self._holds(job)
        done = store.requeue(self.engine, job, counted=counted, after=after * MINUTE)
        assert done == (known is not None and not known.cancelling)
        if known is not None and done:
            known.go(JobStatus.QUEUED)
            known.available_in = after
            known.attempts -= not counted
            known.unclean[store.token_of(job)] = "retry"

    @precondition(lambda self: self.claimed)
    @rule(which=WHICH, status=st.sampled_from([JobStatus.FAILED, JobStatus.CANCELLED]))
    def end(self, which: int, status: JobStatus) -> None:
        job = self._attempt(which)
        known = self._holds(job)
        done = store.end(self.engine, job, status, retention=RETENTION)
        assert done == (known is not None)
        if known is not None:
            known.go(status)
            known.unclean[store.token_of(job)] = status.value

    @precondition(lambda self: self.submitted)
    @rule(which=WHICH)
    def cancel(self, which: int) -> None:
        job_id = self._job(which, JobStatus.RUNNING, JobStatus.QUEUED)
        known = self.model.get(job_id)
        with self.engine.begin() as conn:
            job = job_store.cancel(conn, job_id, client_id=None, retention=RETENTION)
        if known is None or known.status in jobs.FINAL:
            assert job is None
            return
        assert job is not None
        known.cancelling = True
        if known.status is JobStatus.QUEUED:
            known.go(JobStatus.CANCELLED)

    # Orders of events that matter and that chance finds rarely.

    @precondition(lambda self: self.claimed)
    @rule(
        event=st.sampled_from(
            [
                lambda self: self.publish(which=0),
                lambda self: self.requeue(which=0, counted=True, after=0),
                lambda self: self.heartbeat(which=0),
                lambda self: self.end(which=0, status=JobStatus.FAILED),
            ]
        )
    )
    def a_cancel_comes_first(self, event: Callable[["Lives"], None]) -> None:
        self.cancel(which=0)
        event(self)

    @precondition(lambda self: self.claimed)
    @rule(beats=st.integers(1, 3))
    def a_worker_is_alive_for_long(self, beats: int) -> None:
        for _ in range(beats):
            self.time_goes_by(by=9)
            self.heartbeat(which=0)
            self.rescue()

    @rule()
    def rescue(self) -> None:
        with self.engine.begin() as conn:
            lost = job_store.expired_leases(conn, limit=100)
            done = dict(job_store.rescue(conn, lost, delays=DELAYS, retention=RETENTION))
        expected = {
            job_id
            for job_id, known in self.model.items()
            if known.lease_left is not None and known.lease_left <= 0
        }
        assert set(lost) == set(done) == expected
        for job_id in expected:
            known = self.model[job_id]
            assert known.token is not None
            known.unclean[known.token] = "worker_lost"
            if known.cancelling:
                known.go(JobStatus.CANCELLED)
            elif known.attempts > len(DELAYS):
                known.go(JobStatus.FAILED)
            else:
                known.go(JobStatus.QUEUED)
                known.available_in = minutes(DELAYS[known.attempts - 1])
            assert done[job_id] is known.status

    @precondition(lambda self: self.submitted)
    @rule(which=WHICH)
    def retry_by_an_operator(self, which: int) -> None:
        job_id = self._job(which, JobStatus.FAILED, JobStatus.CANCELLED)
        known = self.model.get(job_id)
        with self.engine.begin() as conn:
            done = operator_store.retry(conn, job_id)
        retryable = {JobStatus.FAILED, JobStatus.CANCELLED}
        assert done == (known is not None and known.status in retryable)
        if known is not None and done:
            known.go(JobStatus.QUEUED)
            known.attempts, known.available_in, known.cancelling = 0, 0, False

    @rule(by=st.sampled_from([5, 10, 20, 60, 24 * 60, 2 * 24 * 60]))
    def time_goes_by(self, by: int) -> None:
        store.age(self.engine, by * MINUTE)
        for known in self.model.values():
            known.available_in -= by
            for name in ("lease_left", "ends_in", "result_left", "key_left"):
                left = getattr(known, name)
                if left is not None:
                    setattr(known, name, left - by)

    @rule()
    def purge(self) -> None:
        with self.engine.begin() as conn:
            for job_id, _ in job_store.expired_results(conn, grace=GRACE, limit=100):
                known = self.model[job_id]
                assert known.result_left is not None
                assert known.result_left <= -minutes(GRACE)
                assert not known.result_deleted
                known.result_deleted = True
                job_store.mark_results_deleted(conn, [job_id])
            for remains in job_store.attempts_to_clean(conn, worker_life=WORKER_LIFE, limit=100):
                assert remains.token in self.model[remains.job_id].unclean
                job_store.mark_cleaned(conn, [remains.token], worker_life=dt.timedelta(0))
                del self.model[remains.job_id].unclean[remains.token]
            assert not any(known.unclean for known in self.model.values())
            job_store.forget_expired_keys(conn, limit=100)
            deleted = job_store.delete_expired(conn, limit=100)
        for (client, key), owner in list(self.keys.items()):
            left = self.model[owner].key_left
            if left is not None and left <= 0:
                del self.keys[client, key]
        gone = [
            job_id
            for job_id, known in self.model.items()
            if known.ends_in is not None
            and known.ends_in <= 0
            and (known.status is not JobStatus.SUCCEEDED or known.result_deleted)
        ]
        assert deleted == len(gone)
        for job_id in gone:
            assert self.model[job_id].status in jobs.FINAL
            del self.model[job_id]
        for name, owner in list(self.keys.items()):
            if owner not in self.model:
                del self.keys[name]

    @invariant()
    def agree(self) -> None:
        with self.engine.begin() as conn:
            found = {row.id: row for row in conn.execute(sa.select(tables.jobs))}
            tries = conn.execute(
                sa.text(
                    "SELECT job_id, count(*) AS all, count(*) FILTER (WHERE finished_at IS NULL)"
                    " AS open FROM jobplatform.attempts GROUP BY 1"
                )
            )
            attempts = {row.job_id: (row.all, row.open) for row in tries}
            paths: dict[uuid.UUID, list[tuple[str, str]]] = {}
            for row in conn.execute(sa.select(tables.transitions).order_by("id")):
                paths.setdefault(row.job_id, []).append((row.from_status, row.to_status))
        assert found.keys() == self.model.keys()
        for job_id, known in self.model.items():
            row = found[job_id]
            assert row.status == known.status
            assert row.attempts == known.attempts
            assert row.attempt_token == known.token
            assert paths.get(job_id, []) == known.path
            running = known.status is JobStatus.RUNNING
            assert attempts.get(job_id, (0, 0)) == (known.claims, int(running))
            assert (row.cancel_requested_at is not None) == known.cancelling
            assert (row.result_deleted_at is not None) == known.result_deleted


def test_any_order_of_events_leads_where_the_model_says(engine: sa.Engine) -> None:
    run_state_machine_as_test(
        lambda: Lives(engine),
        settings=settings(max_examples=60, stateful_step_count=40, deadline=None),
    )

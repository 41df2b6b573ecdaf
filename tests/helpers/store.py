"""Jobs as rows: put there, claimed, aged and looked at without a worker."""

import contextlib
import datetime as dt
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar
from unittest import mock

import pg8000.core
import pg8000.dbapi
import sqlalchemy as sa

from jobplatform import database, job_store, jobs, pipelining, tables
from jobplatform.settings import DatabaseSettings, JobSettings

T = TypeVar("T")
SETTINGS = JobSettings()
LEASE = SETTINGS.lease
WEIGHTS = {"basic": 1, "pro": 4}
DAY = dt.timedelta(days=1)


@contextlib.contextmanager
def answer_lost(text: str) -> Iterator[None]:
    """The first statement with `text` in it is done, and then the connection breaks."""
    handle = pg8000.core.CoreConnection.handle_messages
    lost: list[str] = []

    def handle_and_lose(self: pipelining.Connection, context: Any) -> None:
        handle(self, context)
        if text in context.statement and not lost:
            lost.append(context.statement)
            self._usock.close()
            raise pg8000.dbapi.InterfaceError("network error")

    with mock.patch.object(pipelining.Connection, "handle_messages", handle_and_lose):
        yield
    assert lost, f"no statement had {text} in it"


def new_job(client_id: uuid.UUID, **changes: Any) -> job_store.NewJob:
    values: dict[str, Any] = {
        "id": jobs.new_id(),
        "client_id": client_id,
        "plan": "pro",
        "template_name": "flights",
        "template_version": "1",
        "parameters": {},
        "metadata": {},
        "format": jobs.ResultFormat.CSV,
        "compression": jobs.Compression.NONE,
        "run_at": None,
        "max_attempts": len(SETTINGS.retry_delays) + 1,
        "idempotency_key": None,
        "idempotency_ttl": SETTINGS.idempotency_ttl,
    }
    return job_store.NewJob(**{**values, **changes})


def add(engine: sa.Engine, client_id: uuid.UUID, **changes: Any) -> uuid.UUID:
    """A queued job, due now unless `run_at` says otherwise."""
    new = new_job(client_id, **changes)
    with engine.begin() as conn:
        job = job_store.insert(conn, new, request_hash="hash", max_queued=1_000_000)
    assert job is not None
    return job.id


def add_many(engine: sa.Engine, client_id: uuid.UUID, count: int, **changes: Any) -> None:
    """The same in one statement; the order among them is that of their ids."""
    with engine.begin() as conn:
        conn.execute(
            sa.text(
                "INSERT INTO jobplatform.jobs (id, client_id, plan, template_name,"
                " template_version, parameters, metadata, format, compression, status,"
                " status_reason, created_at, available_at, max_attempts)"
                " SELECT gen_random_uuid(), :client, :plan, 'flights', '1', '{}', '{}', 'csv',"
                " 'none', 'queued', 'submitted', now(), now(), 4 FROM generate_series(1, :count)"
            ),
            {"client": client_id, "count": count, "plan": changes.get("plan", "pro")},
        )


def claim(
    engine: sa.Engine, *, lease: dt.timedelta = LEASE, worker: str = "test"
) -> jobs.Job | None:
    with engine.begin() as conn:
        return job_store.claim(
            conn, token=uuid.uuid4(), worker=worker, lease=lease, weights=WEIGHTS
        )


def token_of(job: jobs.Job) -> uuid.UUID:
    assert job.attempt_token is not None
    return job.attempt_token


def heartbeat(engine: sa.Engine, job: jobs.Job, **changes: Any) -> bool | None:
    values = {"token": token_of(job), "lease": LEASE, "rows": 0, "bytes_": 0, "estimate": None}
    with engine.begin() as conn:
        return job_store.heartbeat(conn, job.id, **{**values, **changes})


def publish(engine: sa.Engine, job: jobs.Job, **changes: Any) -> bool:
    token = token_of(job)
    values = {
        "token": token,
        "result_ttl": 7 * DAY,
        "retention": SETTINGS.retention,
        "key": jobs.result_key(job, token),
        "rows": 1,
        "bytes_": 10,
        "sha256": "0" * 64,
        "as_of": None,
        "consistency": "snapshot",
    }
    with engine.begin() as conn:
        done = job_store.publish(conn, job.id, **{**values, **changes})
        if done:
            job_store.close_attempt(conn, token, outcome="published")
    return done


def requeue(engine: sa.Engine, job: jobs.Job, **changes: Any) -> bool:
    values = {
        "token": token_of(job),
        "after": dt.timedelta(seconds=5),
        "reason": "retry",
        "counted": True,
    }
    with engine.begin() as conn:
        done = job_store.requeue(conn, job.id, **{**values, **changes})
        if done:
            job_store.close_attempt(conn, token_of(job), outcome="retry")
    return done


def end(
    engine: sa.Engine, job: jobs.Job, status: jobs.JobStatus = jobs.JobStatus.FAILED, **changes: Any
) -> bool:
    values = {"token": token_of(job), "reason": "test", "retention": SETTINGS.retention}
    with engine.begin() as conn:
        done = job_store.end(conn, job.id, status=status, **{**values, **changes})
        if done:
            job_store.close_attempt(conn, token_of(job), outcome=str(status))
    return done


def cancel(engine: sa.Engine, job_id: uuid.UUID) -> jobs.Job | None:
    with engine.begin() as conn:
        return job_store.cancel(conn, job_id, client_id=None, retention=SETTINGS.retention)


def get(engine: sa.Engine, job_id: uuid.UUID) -> jobs.Job:
    with engine.begin() as conn:
        found = job_store.get(conn, job_id)
    assert found is not None
    return found


def row(engine: sa.Engine, job_id: uuid.UUID) -> Mapping[str, Any]:
    with engine.begin() as conn:
        return conn.execute(sa.select(tables.jobs).where(tables.jobs.c.id == job_id)).one()._mapping


def attempts(engine: sa.Engine, job_id: uuid.UUID) -> list[dict[str, Any]]:
    with engine.begin() as conn:
        return job_store.attempts_of(conn, job_id)


def transitions(engine: sa.Engine, job_id: uuid.UUID) -> list[tuple[str, str]]:
    with engine.begin() as conn:
        found = job_store.transitions_of(conn, job_id)
    return [(each["from_status"], each["to_status"]) for each in found]


def count(engine: sa.Engine, table: str, condition: str = "TRUE") -> int:
    with engine.begin() as conn:
        return int(
            conn.scalar(sa.text(f"SELECT count(*) FROM jobplatform.{table} WHERE {condition}"))
        )


_TIMES = {
    table.name: [column.name for column in table.columns if isinstance(column.type, sa.DateTime)]
    for table in (tables.jobs, tables.attempts)
}


def age(engine: sa.Engine, by: dt.timedelta, job_id: uuid.UUID | None = None) -> None:
    """Moves every time of one job, or of all, into the past, as if so much time had gone by."""
    with engine.begin() as conn:
        for name, columns in _TIMES.items():
            column = "id" if name == "jobs" else "job_id"
            moved = ", ".join(f"{each} = {each} - CAST(:by AS interval)" for each in columns)
            statement = sa.text(
                f"UPDATE jobplatform.{name} SET {moved}"
                f" WHERE CAST(:id AS uuid) IS NULL OR {column} = CAST(:id AS uuid)"
            ).bindparams(sa.bindparam("id", type_=sa.Uuid()), sa.bindparam("by", type_=sa.Interval))
            conn.execute(statement, {"by": by, "id": job_id})
        moved_clients = "last_claimed_at = last_claimed_at - CAST(:by AS interval)"
        if job_id is None:
            conn.execute(
                sa.text(f"UPDATE jobplatform.clients SET {moved_clients}").bindparams(
                    sa.bindparam("by", type_=sa.Interval)
                ),
                {"by": by},
            )


def change(engine: sa.Engine, job_id: uuid.UUID, **values: Any) -> None:
    with engine.begin() as conn:
        conn.execute(sa.update(tables.jobs).where(tables.jobs.c.id == job_id).values(**values))


@contextlib.contextmanager
def impatient(address: DatabaseSettings) -> Iterator[sa.Engine]:
    """An engine whose statements fail as soon as they have to wait for somebody's lock."""
    engine = database.create_engine(address, application_name="impatient")

    @sa.event.listens_for(engine, "connect")
    def _do_not_wait(dbapi_connection: Any, record: Any) -> None:
        dbapi_connection.cursor().execute("SET lock_timeout = '1ms'")
        dbapi_connection.commit()

    yield engine
    engine.dispose()


def at_once(calls: Sequence[Callable[[], T]]) -> list[T]:
    """Runs them in a thread each, started together; the first exception is raised."""
    barrier = threading.Barrier(len(calls))
    found: list[T | BaseException | None] = [None] * len(calls)

    def run(index: int) -> None:
        try:
            barrier.wait(10)
            found[index] = calls[index]()
        except BaseException as error:
            found[index] = error

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    answers: list[T] = []
    for item in found:
        if isinstance(item, BaseException):
            raise item
        answers.append(item)  # type: ignore[arg-type]
    return answers


def until(condition: Callable[[], T | None], *, seconds: float = 10.0, what: str = "") -> T:
    """What the condition answers once it is true; fails at the deadline."""
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what or condition}"
        pause.wait(0.01)
    return found

"""Claim, dispatch, list, submit and purge with 10 million jobs, against the same with 10 thousand.

Two databases of one server differ in the number of finished jobs alone; what waits, runs or is due
to be purged is the same in both. Each step is rolled back, so that the next finds the same again.
"""

import datetime as dt
import functools
import statistics
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import sqlalchemy as sa

from infra.local.postgres import connect
from jobplatform import database, job_store, jobs, migrations
from jobplatform.settings import DatabaseSettings
from tests.benchmarks.bench import Bench
from tests.benchmarks.data import ROWS
from tests.benchmarks.measuring import Goal, Result, interleave

FEW = 10_000
MANY = 10_000_000
_CLIENTS = 200
_WAITING = 300
_CALLS = 20
_GOAL = Goal(2.0)

# The generated part: finished jobs, spread over the clients and over the last thirty days.
_FINISHED = """
INSERT INTO jobplatform.jobs (id, client_id, plan, template_name, template_version, parameters,
    metadata, format, compression, status, status_reason, created_at, available_at, started_at,
    finished_at, expires_at, attempts, max_attempts, rows_written, bytes_written, result_key,
    result_rows, result_bytes, result_sha256, result_consistency, result_expires_at,
    result_deleted_at, error_code)
SELECT gen_random_uuid(), c.id, 'pro', 'flights', '1', '{"carrier": "UA"}', '{}', 'csv', 'none',
    CASE WHEN n % 20 = 0 THEN 'failed' ELSE 'succeeded' END, 'published', at, at, at, at,
    at + CAST('30 days' AS interval) + CASE WHEN n % 5000 = 0 THEN CAST('-60 days' AS interval)
        ELSE CAST('1 day' AS interval) END,
    1, 4, 1000, 100000,
    CASE WHEN n % 20 <> 0 THEN 'results/key' END, 1000, 100000, repeat('a', 64), 'snapshot',
    CASE WHEN n % 20 <> 0 THEN at + CAST('7 days' AS interval) END,
    CASE WHEN n % 20 <> 0 THEN at + CAST('8 days' AS interval) END,
    CASE WHEN n % 20 = 0 THEN 'internal_error' END
FROM generate_series(1, {jobs}) AS n
JOIN clients_by_number AS c ON c.number = n % {clients}
CROSS JOIN LATERAL (SELECT now() - random() * CAST('30 days' AS interval) AS at) AS moment
"""
_UNFINISHED = """
INSERT INTO jobplatform.jobs (id, client_id, plan, template_name, template_version, parameters,
    metadata, format, compression, status, status_reason, created_at, available_at, max_attempts,
    idempotency_key, idempotency_expires_at, request_hash)
SELECT gen_random_uuid(), c.id, 'pro', 'flights', '1', '{}', '{}', 'csv', 'none', 'queued',
    'submitted', now() - CAST('1 hour' AS interval), now() - CAST('1 hour' AS interval), 4,
    'key-' || n, now() - CAST('1 minute' AS interval), 'hash'
FROM generate_series(1, {waiting}) AS n JOIN clients_by_number AS c ON c.number = n % {clients}
"""


def run(bench: Bench) -> Iterator[Result]:
    many = MANY if bench.rows >= ROWS else bench.rows * 3
    engines = {f"{count:,} jobs": _fill(bench, f"growth_{count}", count) for count in (many, FEW)}
    big, small = engines
    for name, step in _STEPS.items():
        ways = {size: functools.partial(_time, engine, step) for size, engine in engines.items()}
        samples = interleave(ways, rounds=bench.rounds(5), told=bench.told)
        yield samples.result(
            f"{name}, {big} / {small}", big, small, _GOAL, note=_plan(engines[big], step)
        )
    for engine in engines.values():
        engine.dispose()


def _fill(bench: Bench, name: str, count: int) -> sa.Engine:
    """A database of its own; its indexes are made after the rows, which is several times faster."""
    bench.told(f"making a database of {count:,} jobs")
    connection = connect(bench.server.url("platform"))
    connection.run(f"CREATE DATABASE {name}")
    connection.close()
    address = DatabaseSettings(url=bench.server.url(name))
    engine = database.create_engine(address, application_name="benchmarks", statement_timeout=3600)
    migrations.upgrade(engine)
    filling = connect(bench.server.url(name))
    run = filling.run
    definitions = run(
        "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'jobplatform'"
        " AND tablename = 'jobs' AND indexname <> 'jobs_pkey'"
    )
    for index, _ in definitions:
        run(f"DROP INDEX jobplatform.{index}")
    run(
        "INSERT INTO jobplatform.clients (id, name)"
        f" SELECT gen_random_uuid(), 'client ' || n FROM generate_series(1, {_CLIENTS}) AS n"
    )
    run(
        "CREATE TEMPORARY TABLE clients_by_number AS"
        " SELECT id, row_number() OVER (ORDER BY name) - 1 AS number FROM jobplatform.clients"
    )
    batch = 500_000
    for done in range(0, count, batch):
        bench.told(f"making a database of {count:,} jobs: {done:,}")
        size = min(batch, count - done)
        run(_FINISHED.replace("{jobs}", str(size)).replace("{clients}", str(_CLIENTS)))
    run(_UNFINISHED.replace("{waiting}", str(_WAITING)).replace("{clients}", str(_CLIENTS)))
    for index, definition in definitions:
        bench.told(f"making a database of {count:,} jobs: {index}")
        run(definition)
    bench.told(f"making a database of {count:,} jobs: VACUUM ANALYZE")
    run("VACUUM ANALYZE jobplatform.jobs")
    filling.close()
    return engine


def _time(engine: sa.Engine, step: Callable[[sa.Connection], Any]) -> float:
    """Median seconds of one call."""
    taken = []
    for _ in range(_CALLS):
        with engine.connect() as conn:
            conn.execute(sa.text("SELECT 1"))
            began = time.perf_counter()
            step(conn)
            taken.append(time.perf_counter() - began)
            conn.rollback()
    return statistics.median(taken)


def _plan(engine: sa.Engine, step: Callable[[sa.Connection], Any]) -> str:
    """The indexes that the step's statement uses, as the planner says."""
    seen: list[tuple[str, Any]] = []

    def note(conn: Any, cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        seen.append((statement, parameters))

    sa.event.listen(engine, "before_cursor_execute", note)
    with engine.connect() as conn:
        step(conn)
        conn.rollback()
        sa.event.remove(engine, "before_cursor_execute", note)
        lines: list[str] = []
        for statement, parameters in seen:
            found = conn.exec_driver_sql("EXPLAIN " + statement, parameters)
            lines += [str(line) for (line,) in found]
        conn.rollback()
    used = sorted(
        {line.split(" using ")[1].split(" on ")[0] for line in lines if " using " in line}
    )
    bitmap = sorted({line.split(" on ")[1].split()[0] for line in lines if "Bitmap Index" in line})
    scans = ["Seq Scan on jobs" for line in lines if "Seq Scan on jobs" in line][:1]
    return "plan: " + ", ".join([*used, *bitmap, *scans])


def _claim(conn: sa.Connection) -> None:
    claimed = job_store.claim(
        conn, token=uuid.uuid4(), worker="w", lease=dt.timedelta(seconds=60), weights={"pro": 4}
    )
    assert claimed is not None


def _dispatch(conn: sa.Connection) -> None:
    found = job_store.due(
        conn, ahead=dt.timedelta(seconds=75), ring_again_after=dt.timedelta(minutes=5), limit=1_000
    )
    assert len(found) == _WAITING


def _client(conn: sa.Connection) -> uuid.UUID:
    found = conn.scalar(sa.text("SELECT id FROM jobplatform.clients ORDER BY name LIMIT 1"))
    assert isinstance(found, uuid.UUID)
    return found


def _list(conn: sa.Connection) -> None:
    page = job_store.list_page(conn, _client(conn), limit=50)
    assert page


def _list_failed(conn: sa.Connection) -> None:
    page = job_store.list_page(conn, _client(conn), status=jobs.JobStatus.FAILED, limit=2)
    assert page is not None


def _submit(conn: sa.Connection) -> None:
    made = job_store.insert(
        conn,
        job_store.NewJob(
            id=jobs.new_id(),
            client_id=_client(conn),
            plan="pro",
            template_name="flights",
            template_version="1",
            parameters={},
            metadata={},
            format=jobs.ResultFormat.CSV,
            compression=jobs.Compression.NONE,
            run_at=None,
            max_attempts=4,
            idempotency_key=str(uuid.uuid4()),
            idempotency_ttl=dt.timedelta(hours=24),
        ),
        request_hash="hash",
        max_queued=1_000,
    )
    assert made is not None


def _purge(conn: sa.Connection) -> None:
    # As many as both databases have to purge, so that the work is the same.
    assert job_store.delete_expired(conn, limit=2) == 2


def _forget_keys(conn: sa.Connection) -> None:
    assert job_store.forget_expired_keys(conn, limit=100) == 100


_STEPS: dict[str, Callable[[sa.Connection], None]] = {
    "claim": _claim,
    "dispatch": _dispatch,
    "list": _list,
    "list of failed": _list_failed,
    "submit": _submit,
    "purge of jobs": _purge,
    "purge of keys": _forget_keys,
}

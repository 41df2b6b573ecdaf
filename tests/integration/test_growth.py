"""Claim, dispatch, list, submit and purge read their indexes, however many jobs have ended."""

import datetime as dt
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from infra.local import postgres
from jobplatform import (
    client_store,
    database,
    job_store,
    jobs,
    migrations,
    operator_store,
    settings,
)
from tests.helpers import store

JOBS = 20_000
CLIENTS = 50
MINUTE = dt.timedelta(minutes=1)
FILL = f"""
INSERT INTO jobplatform.clients (id, name)
SELECT gen_random_uuid(), 'client ' || n FROM generate_series(1, {CLIENTS}) AS n;

CREATE TEMPORARY TABLE owners AS
SELECT id, row_number() OVER () - 1 AS number FROM jobplatform.clients;

-- Ended, over the last thirty days; a few are past their retention, or their result's time.
INSERT INTO jobplatform.jobs (id, client_id, plan, template_name, template_version, parameters,
    metadata, format, compression, status, status_reason, created_at, available_at, finished_at,
    expires_at, attempts, max_attempts, result_key, result_expires_at, result_deleted_at,
    idempotency_key, idempotency_expires_at)
SELECT gen_random_uuid(), o.id, 'pro', 'flights', '1', '{{}}', '{{}}', 'csv', 'none',
    CASE WHEN n % 10 = 0 THEN 'failed' ELSE 'succeeded' END, 'published', at, at, at,
    CASE WHEN n % 400 = 0 THEN now() - interval '1 hour' ELSE at + interval '31 days' END, 1, 4,
    CASE WHEN n % 10 <> 0 THEN 'results/' || n END,
    CASE WHEN n % 10 <> 0 THEN at + interval '7 days' END,
    CASE WHEN n % 10 <> 0 AND n % 400 <> 1 AND at < now() - interval '7 days' THEN now() END,
    CASE WHEN n % 100 = 2 THEN 'old ' || n WHEN n % 20 = 0 THEN 'key ' || n END,
    CASE WHEN n % 100 = 2 THEN now() - interval '1 hour'
         WHEN n % 20 = 0 THEN now() + interval '1 hour' END
FROM generate_series(1, {JOBS}) AS n JOIN owners AS o ON o.number = n % {CLIENTS},
    LATERAL (SELECT now() - n * interval '2 minutes' AS at) AS moment;

INSERT INTO jobplatform.attempts (token, upload_token, job_id, client_id, number, worker,
    started_at, finished_at, outcome, cleaned_at)
SELECT t, t, id, client_id, 1, 'w', created_at, created_at,
    CASE WHEN status = 'failed' THEN 'failed' ELSE 'published' END,
    now()
FROM jobplatform.jobs, LATERAL (SELECT gen_random_uuid() AS t WHERE jobs.id IS NOT NULL) AS made;

INSERT INTO jobplatform.transitions (job_id, client_id, from_status, to_status, reason, attempt)
SELECT id, client_id, from_status, to_status, 'r', 1 FROM jobplatform.jobs,
    (VALUES ('queued', 'running'), ('running', 'succeeded')) AS path(from_status, to_status);

-- Waiting: most for a worker, some for their time.
INSERT INTO jobplatform.jobs (id, client_id, plan, template_name, template_version, parameters,
    metadata, format, compression, status, status_reason, created_at, available_at, max_attempts)
SELECT gen_random_uuid(), o.id, 'pro', 'flights', '1', '{{}}', '{{}}', 'csv', 'none', 'queued',
    'submitted', now() - interval '1 hour',
    now() + CASE WHEN n % 3 = 0 THEN interval '1 day' ELSE interval '-1 hour' END, 4
FROM generate_series(1, 200) AS n JOIN owners AS o ON o.number = n % 20;

-- Running, a few without a worker.
INSERT INTO jobplatform.jobs (id, client_id, plan, template_name, template_version, parameters,
    metadata, format, compression, status, status_reason, created_at, available_at, attempts,
    max_attempts, attempt_token, lease_expires_at)
SELECT gen_random_uuid(), o.id, 'pro', 'flights', '1', '{{}}', '{{}}', 'csv', 'none', 'running',
    'claimed', now() - interval '1 hour', now() - interval '1 hour', 1, 4, gen_random_uuid(),
    now() + CASE WHEN n % 4 = 0 THEN interval '-1 minute' ELSE interval '1 minute' END
FROM generate_series(1, 20) AS n JOIN owners AS o ON o.number = n % 20;

INSERT INTO jobplatform.attempts (token, upload_token, job_id, client_id, number, worker)
SELECT attempt_token, attempt_token, id, client_id, 1, 'w' FROM jobplatform.jobs
WHERE status = 'running';

UPDATE jobplatform.attempts SET cleaned_at = NULL WHERE token IN (
    SELECT token FROM jobplatform.attempts WHERE outcome = 'failed' LIMIT 30);
"""


@pytest.fixture(scope="module")
def grown(server: postgres.LocalPostgres) -> Iterator[sa.Engine]:
    """A database of its own with many jobs, whose statistics are known."""
    connection = postgres.connect(server.url("platform"))
    connection.run("CREATE DATABASE grown")
    address = settings.DatabaseSettings(url=server.url("grown"))
    engine = database.create_engine(address, application_name="tests", statement_timeout=60)
    migrations.upgrade(engine)
    filling = postgres.connect(server.url("grown"))
    filling.run(FILL)
    filling.run("ANALYZE")
    filling.close()
    yield engine
    engine.dispose()
    connection.run("DROP DATABASE grown WITH (FORCE)")
    connection.close()


def a_client(conn: sa.Connection) -> uuid.UUID:
    found = conn.scalar(sa.text("SELECT id FROM jobplatform.clients WHERE name = 'client 7'"))
    assert isinstance(found, uuid.UUID)
    return found


def a_job(conn: sa.Connection, status: str) -> uuid.UUID:
    found = conn.scalar(
        sa.text("SELECT id FROM jobplatform.jobs WHERE status = :status LIMIT 1"),
        {"status": status},
    )
    assert isinstance(found, uuid.UUID)
    return found


def tokens(conn: sa.Connection) -> list[uuid.UUID]:
    """Of uploads that go on, and of others."""
    return list(
        conn.scalars(
            sa.text(
                "(SELECT token FROM jobplatform.attempts WHERE finished_at IS NULL LIMIT 1)"
                " UNION ALL (SELECT token FROM jobplatform.attempts ORDER BY token LIMIT 50)"
            )
        )
    )


def owner_of(conn: sa.Connection, key: str) -> uuid.UUID:
    found = conn.scalar(
        sa.text("SELECT client_id FROM jobplatform.jobs WHERE idempotency_key = :key LIMIT 1"),
        {"key": key},
    )
    assert isinstance(found, uuid.UUID)
    return found


def submit(conn: sa.Connection, client_id: uuid.UUID) -> Any:
    new = store.new_job(client_id, idempotency_key="new")
    return job_store.insert(conn, new, request_hash="h", max_queued=1_000)


Step = Callable[[sa.Connection, uuid.UUID], Any]
# What each does has to find something, or its plan would prove nothing.
STEPS: dict[str, Step] = {
    "submit": submit,
    "find by key": lambda conn, client: job_store.find_by_key(
        conn,
        conn.scalar(
            sa.text("SELECT client_id FROM jobplatform.jobs WHERE idempotency_key = 'key 40'")
        ),
        "key 40",
    ),
    "claim": lambda conn, _: job_store.claim(
        conn, token=uuid.uuid4(), worker="w", lease=MINUTE, weights=store.WEIGHTS
    ),
    "due in": lambda conn, _: job_store.due_in(conn, a_job(conn, "queued")) is not None,
    "due": lambda conn, _: job_store.due(
        conn, ahead=MINUTE, ring_again_after=5 * MINUTE, limit=1_000
    ),
    "expired leases": lambda conn, _: job_store.expired_leases(conn, limit=500),
    "rescue": lambda conn, _: job_store.rescue(
        conn,
        job_store.expired_leases(conn, limit=1),
        delays=store.SETTINGS.retry_delays,
        retention=store.DAY,
    ),
    "cancel": lambda conn, _: job_store.cancel(
        conn, a_job(conn, "queued"), client_id=None, retention=store.DAY
    ),
    "list": lambda conn, client: job_store.list_page(conn, client, limit=200),
    "list by status": lambda conn, client: job_store.list_page(
        conn, client, status=jobs.JobStatus.SUCCEEDED, limit=50
    ),
    "list by template": lambda conn, client: job_store.list_page(
        conn, client, template_name="flights", limit=50
    ),
    "next page": lambda conn, client: job_store.list_page(
        conn, client, before=(dt.datetime.now(dt.UTC) - 10 * store.DAY, uuid.uuid4()), limit=50
    ),
    "list of some days": lambda conn, client: job_store.list_page(
        conn,
        client,
        created_after=dt.datetime.now(dt.UTC) - 3 * store.DAY,
        created_before=dt.datetime.now(dt.UTC) - 2 * store.DAY,
        limit=50,
    ),
    "attempts to clean": lambda conn, _: job_store.attempts_to_clean(
        conn, worker_life=16 * MINUTE, limit=100
    ),
    "live uploads": lambda conn, _: job_store.live_tokens(conn, tokens(conn)),
    "expired results": lambda conn, _: job_store.expired_results(
        conn, grace=dt.timedelta(0), limit=500
    ),
    "forget keys": lambda conn, _: job_store.forget_expired_keys(conn, limit=50),
    "delete expired": lambda conn, _: job_store.delete_expired(conn, limit=20),
    "audit trail": lambda conn, _: (
        job_store.attempts_of(conn, a_job(conn, "succeeded"))
        and job_store.transitions_of(conn, a_job(conn, "succeeded"))
    ),
}
LARGE = {"jobs", "attempts", "transitions"}


def plans(engine: sa.Engine, step: Step) -> list[dict[str, Any]]:
    """The plans of all statements of a step, as they were executed."""
    seen: list[tuple[str, Any]] = []

    def note(conn: Any, cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        seen.append((statement, parameters))

    with engine.connect() as conn:
        client_id = a_client(conn)
        sa.event.listen(engine, "before_cursor_execute", note)
        try:
            assert step(conn, client_id), "it found nothing"
        finally:
            sa.event.remove(engine, "before_cursor_execute", note)
        conn.rollback()
        # Those that look for something to work with are the tests' own.
        statements = [each for each in seen if "LIMIT 1" not in each[0] or "WITH" in each[0]]
        found = [
            conn.exec_driver_sql("EXPLAIN (ANALYZE, FORMAT JSON) " + statement, parameters).scalar()
            for statement, parameters in statements
        ]
        conn.rollback()
    return [each[0]["Plan"] for each in found]


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", []):
        yield from nodes(child)


@pytest.mark.parametrize("name", STEPS)
def test_no_step_reads_a_whole_table(grown: sa.Engine, name: str) -> None:
    for plan in plans(grown, STEPS[name]):
        for node in nodes(plan):
            if node.get("Relation Name") not in LARGE:
                continue
            assert node["Node Type"] != "Seq Scan", plan
            # An index that has to be read to its end is no better.
            looked_at = node["Actual Loops"] * (
                node["Actual Rows"] + node.get("Rows Removed by Filter", 0)
            )
            assert looked_at <= 1_500, (node["Node Type"], node.get("Index Name"), looked_at)


def test_a_removed_client_is_found_by_an_index(grown: sa.Engine) -> None:
    def hasten(conn: sa.Connection, client_id: uuid.UUID) -> int:
        client_store.remove(conn, client_id)
        return client_store.hasten_removed(conn, limit=100)

    for plan in plans(grown, hasten):
        for node in nodes(plan):
            if node.get("Relation Name") in LARGE:
                assert node["Node Type"] != "Seq Scan", plan


def test_what_a_purge_would_take_is_counted_by_indexes(grown: sa.Engine) -> None:
    def count(conn: sa.Connection, client_id: uuid.UUID) -> dict[str, int]:
        client_store.remove(conn, client_id)
        return operator_store.purgeable(conn, grace=dt.timedelta(0))

    for plan in plans(grown, count):
        for node in nodes(plan):
            if node.get("Relation Name") in LARGE:
                assert node["Node Type"] != "Seq Scan", plan

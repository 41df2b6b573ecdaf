"""SQL for operators: jobs of every client, what is stuck, what a purge would take, dead letters.

As in `job_store`, one function is one statement, and the caller ends the transaction.
"""

import datetime as dt
import uuid
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg

from jobplatform.jobs import JobStatus
from jobplatform.tables import any_of, attempts, clients, jobs

_now = sa.func.now()
_QUEUED = jobs.c.status == JobStatus.QUEUED
_RUNNING = jobs.c.status == JobStatus.RUNNING


def list_jobs(
    conn: sa.Connection,
    *,
    status: JobStatus | None,
    client_id: uuid.UUID | None,
    stuck_for: dt.timedelta | None,
    limit: int,
) -> list[dict[str, Any]]:
    """Jobs, newest first; with `stuck_for` those that should have moved on so long ago."""
    statement = (
        sa.select(
            jobs.c.id.label("job_id"),
            clients.c.name.label("client"),
            jobs.c.template_name,
            jobs.c.status,
            jobs.c.status_reason,
            jobs.c.created_at,
            jobs.c.available_at,
            jobs.c.finished_at,
            jobs.c.attempts,
            jobs.c.lease_expires_at,
            jobs.c.error_code,
            jobs.c.dead_letter_at,
        )
        .join_from(jobs, clients, clients.c.id == jobs.c.client_id)
        # Ids are ordered by time, so that this is the primary key read backwards.
        .order_by(jobs.c.id.desc())
        .limit(limit)
    )
    if status is not None:
        statement = statement.where(jobs.c.status == status)
    if client_id is not None:
        statement = statement.where(jobs.c.client_id == client_id)
    if stuck_for is not None:
        statement = statement.where(
            sa.or_(
                sa.and_(_QUEUED, jobs.c.available_at < _now - stuck_for),
                sa.and_(_RUNNING, jobs.c.lease_expires_at < _now - stuck_for),
                sa.and_(_RUNNING, jobs.c.cancel_requested_at < _now - stuck_for),
            )
        )
    return [dict(row._mapping) for row in conn.execute(statement)]


def row_of(conn: sa.Connection, job_id: uuid.UUID) -> dict[str, Any] | None:
    """The whole row of a job, with its client's name and the database's time beside it."""
    statement = (
        sa.select(jobs, clients.c.name.label("client"), clients.c.removed_at, _now.label("now"))
        .join_from(jobs, clients, clients.c.id == jobs.c.client_id)
        .where(jobs.c.id == job_id)
    )
    row = conn.execute(statement).first()
    return dict(row._mapping) if row else None


def ahead_of(conn: sa.Connection, job_id: uuid.UUID) -> int:
    """How many due jobs of the same client come first; other clients have their own turns."""
    other = jobs.alias("other")
    statement = (
        sa.select(sa.func.count())
        .select_from(jobs)
        .join(
            other,
            sa.and_(
                other.c.client_id == jobs.c.client_id,
                other.c.status == JobStatus.QUEUED,
                other.c.available_at <= _now,
                sa.tuple_(other.c.available_at, other.c.id)
                < sa.tuple_(jobs.c.available_at, jobs.c.id),
            ),
        )
        .where(jobs.c.id == job_id)
    )
    return int(conn.scalar(statement) or 0)


def running(conn: sa.Connection) -> int:
    return int(conn.scalar(sa.select(sa.func.count()).select_from(jobs).where(_RUNNING)) or 0)


def retry(conn: sa.Connection, job_id: uuid.UUID) -> bool:
    """`failed | cancelled -> queued`, due now, with all its attempts; False in another state.

    Not for a job of a removed client. Earlier attempts and transitions stay as they are.
    """
    active = sa.exists().where(clients.c.id == jobs.c.client_id, clients.c.removed_at.is_(None))
    result = conn.execute(
        sa.update(jobs)
        .where(
            jobs.c.id == job_id,
            jobs.c.status.in_([JobStatus.FAILED, JobStatus.CANCELLED]),
            active,
        )
        .values(
            status=JobStatus.QUEUED,
            status_reason="retried by an operator",
            available_at=_now,
            rung_at=None,
            attempts=0,
            finished_at=None,
            expires_at=None,
            cancel_requested_at=None,
            checkpoint=None,
            error_code=None,
            error_message=None,
            rows_written=0,
            bytes_written=0,
        )
    )
    return result.rowcount == 1


def note_dead_letters(
    conn: sa.Connection, letters: Mapping[uuid.UUID, dt.datetime]
) -> list[uuid.UUID]:
    """Writes on each job that its doorbell, sent at that time, was given up; it is rung for again.

    Answers the jobs for which that was news.
    """
    if not letters:
        return []
    given_up = (
        sa.func.unnest(
            sa.bindparam("ids", list(letters), type_=pg.ARRAY(sa.Uuid())),
            sa.bindparam(
                "moments", list(letters.values()), type_=pg.ARRAY(sa.DateTime(timezone=True))
            ),
        )
        .table_valued("job_id", "at")
        .render_derived(name="letter")
    )
    sent_at = sa.cast(given_up.c.at, sa.DateTime(timezone=True))
    statement = (
        sa.update(jobs)
        .where(
            jobs.c.id == sa.cast(given_up.c.job_id, sa.Uuid),
            sa.or_(jobs.c.dead_letter_at.is_(None), jobs.c.dead_letter_at < sent_at),
        )
        .values(dead_letter_at=_now, rung_at=None)
        .returning(jobs.c.id)
    )
    return list(conn.scalars(statement))


def statuses(conn: sa.Connection, job_ids: list[uuid.UUID]) -> dict[uuid.UUID, str]:
    rows = conn.execute(sa.select(jobs.c.id, jobs.c.status).where(jobs.c.id == any_of(job_ids)))
    return {row.id: row.status for row in rows}


def purgeable(conn: sa.Connection, *, grace: dt.timedelta) -> dict[str, int]:
    """How many of each kind a purge would take now, uploads in S3 aside."""

    def count(source: sa.Table, *either: sa.ColumnElement[bool]) -> Any:
        """Each condition is looked up by an index of its own: an OR of them has none."""
        found = sa.union(*(sa.select(*source.primary_key).where(each) for each in either))
        return sa.select(sa.func.count()).select_from(found.subquery()).scalar_subquery()

    removed = sa.select(clients.c.id).where(clients.c.removed_at.is_not(None))
    of_removed = jobs.c.client_id.in_(removed)
    has_result = sa.and_(jobs.c.result_expires_at.is_not(None), jobs.c.result_deleted_at.is_(None))
    has_ended = sa.and_(jobs.c.finished_at.is_not(None), jobs.c.expires_at.is_not(None))
    row = conn.execute(
        sa.select(
            count(
                jobs,
                sa.and_(has_result, jobs.c.result_expires_at <= _now - grace),
                sa.and_(has_result, of_removed),
            ).label("results"),
            count(
                attempts,
                sa.and_(attempts.c.finished_at.is_not(None), attempts.c.cleaned_at.is_(None)),
            ).label("attempts"),
            count(
                jobs,
                sa.and_(jobs.c.idempotency_key.is_not(None), jobs.c.idempotency_expires_at <= _now),
            ).label("keys"),
            count(
                jobs,
                sa.and_(has_ended, jobs.c.expires_at <= _now),
                sa.and_(has_ended, of_removed),
            ).label("jobs"),
            count(clients, clients.c.removed_at.is_not(None)).label("clients"),
        )
    ).one()
    return dict(row._mapping)

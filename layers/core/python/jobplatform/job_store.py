"""SQL on jobs, in the order of a job's life; the job row is its own outbox and idempotency record.

One function, one statement, but for `drop_checkpoint`. `conn` is an open transaction, which the
caller ends, or has end with the statement. A change of state is compare-and-set: None or False
means that somebody else was there first. All times are the database's.
"""

import dataclasses
import datetime as dt
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy import exc
from sqlalchemy.dialects import postgresql as pg

from jobplatform import errors
from jobplatform.jobs import Compression, Job, JobStatus, Result, ResultFormat
from jobplatform.tables import any_of, attempts, jobs, transitions

_now = sa.func.now()
# A checkpoint lists every part of an upload, and is of no concern to a client.
_shown = [column for column in jobs.columns if column is not jobs.c.checkpoint]


@dataclasses.dataclass(frozen=True, kw_only=True)
class NewJob:
    """What a submit decides; the database adds the times."""

    id: uuid.UUID
    client_id: uuid.UUID
    plan: str
    template_name: str
    template_version: str
    parameters: dict[str, Any]
    metadata: dict[str, Any]
    format: ResultFormat
    compression: Compression
    run_at: dt.datetime | None
    max_attempts: int
    idempotency_key: str | None
    idempotency_ttl: dt.timedelta


def insert(conn: sa.Connection, new: NewJob, *, request_hash: str, max_queued: int) -> Job | None:
    """Makes the job; None where its key names one, or `max_queued` of its client wait or run.

    Raises `errors.UnknownClient` for a client that the purge has deleted meanwhile.
    """
    values = {
        "id": new.id,
        "client_id": new.client_id,
        "plan": new.plan,
        "template_name": new.template_name,
        "template_version": new.template_version,
        "parameters": new.parameters,
        "metadata": new.metadata,
        "format": new.format,
        "compression": new.compression,
        "run_at": new.run_at,
        "max_attempts": new.max_attempts,
        "idempotency_key": new.idempotency_key,
        "idempotency_ttl": new.idempotency_ttl,
        "request_hash": request_hash,
        "max_queued": max_queued,
    }
    try:
        row = conn.execute(_INSERT, values).first()
    except exc.DatabaseError as error:  # pg8000 gives every error of the server one class
        if "jobs_client_id_fkey" in str(error):
            raise errors.UnknownClient from error
        raise
    return _job(row) if row else None


def get(
    conn: sa.Connection, job_id: uuid.UUID, *, client_id: uuid.UUID | None = None
) -> Job | None:
    """The job; with `client_id` only if it is that client's, and without its checkpoint."""
    statement = sa.select(*(jobs.c if client_id is None else _shown)).where(jobs.c.id == job_id)
    if client_id is not None:
        statement = statement.where(jobs.c.client_id == client_id)
    row = conn.execute(statement).first()
    return _job(row) if row else None


def find_by_key(conn: sa.Connection, client_id: uuid.UUID, idempotency_key: str) -> Job | None:
    """The job that the key names, unless the key's time is over."""
    row = conn.execute(_FIND_BY_KEY, {"client": client_id, "key": idempotency_key}).first()
    return _job(row) if row else None


def release_expired_key(conn: sa.Connection, client_id: uuid.UUID, idempotency_key: str) -> bool:
    """Frees a key whose time is over and that the purge has not yet come to."""
    result = conn.execute(
        sa.update(jobs)
        .where(
            jobs.c.client_id == client_id,
            jobs.c.idempotency_key == idempotency_key,
            jobs.c.idempotency_expires_at <= _now,
        )
        .values(idempotency_key=None, idempotency_expires_at=None)
    )
    return result.rowcount > 0


def list_page(
    conn: sa.Connection,
    client_id: uuid.UUID,
    *,
    status: JobStatus | None = None,
    template_name: str | None = None,
    created_after: dt.datetime | None = None,
    created_before: dt.datetime | None = None,
    before: tuple[dt.datetime, uuid.UUID] | None = None,
    limit: int,
) -> list[Job]:
    """The client's jobs, newest first, from the one that follows `before` in that order.

    Without their checkpoints.
    """
    statement = sa.select(*_shown).where(jobs.c.client_id == client_id)
    if status is not None:
        statement = statement.where(jobs.c.status == status)
    if template_name is not None:
        statement = statement.where(jobs.c.template_name == template_name)
    if created_after is not None:
        statement = statement.where(jobs.c.created_at > created_after)
    if created_before is not None:
        statement = statement.where(jobs.c.created_at < created_before)
    if before is not None:
        statement = statement.where(sa.tuple_(jobs.c.created_at, jobs.c.id) < before)
    statement = statement.order_by(jobs.c.created_at.desc(), jobs.c.id.desc()).limit(limit)
    return [_job(row) for row in conn.execute(statement)]


def claim(
    conn: sa.Connection,
    *,
    token: uuid.UUID,
    worker: str,
    lease: dt.timedelta,
    weights: Mapping[str, int],
) -> Job | None:
    """Takes the job that is next: of the client that has the smallest share of the workers.

    The share is the client's running jobs divided by its plan's weight; among equals, the client
    served longest ago. A client that is alone gets every worker. Of one client's jobs, the one due
    first. None: nothing is due.
    """
    row = conn.execute(
        _CLAIM, {"token": token, "worker": worker, "lease": lease, "weights": dict(weights)}
    ).first()
    return _job(row) if row else None


def heartbeat(
    conn: sa.Connection,
    job_id: uuid.UUID,
    *,
    token: uuid.UUID,
    lease: dt.timedelta,
    rows: int,
    bytes_: int,
    estimate: int | None,
    checkpoint: dict[str, Any] | None = None,
) -> bool | None:
    """Renews the lease and notes the progress: whether to cancel; None if the lease is lost."""
    noted = {} if checkpoint is None else {"checkpoint": checkpoint}
    row = conn.execute(
        sa.update(jobs)
        .where(
            jobs.c.id == job_id, jobs.c.attempt_token == token, jobs.c.status == JobStatus.RUNNING
        )
        .values(
            **noted,
            lease_expires_at=sa.func.now() + lease,
            rows_written=rows,
            bytes_written=bytes_,
            rows_estimated=sa.func.coalesce(
                sa.cast(estimate, sa.BigInteger), jobs.c.rows_estimated
            ),
        )
        .returning(jobs.c.cancel_requested_at)
    ).first()
    return None if row is None else row.cancel_requested_at is not None


def publish(
    conn: sa.Connection,
    job_id: uuid.UUID,
    *,
    token: uuid.UUID,
    result_ttl: dt.timedelta,
    retention: dt.timedelta,
    key: str,
    rows: int,
    bytes_: int,
    sha256: str,
    as_of: dt.datetime | None,
    consistency: str,
) -> bool:
    """`running -> succeeded`, fenced by the token and by a cancel that came first."""
    result = conn.execute(
        sa.update(jobs)
        .where(
            jobs.c.id == job_id,
            jobs.c.attempt_token == token,
            jobs.c.status == JobStatus.RUNNING,
            jobs.c.cancel_requested_at.is_(None),
        )
        .values(
            status=JobStatus.SUCCEEDED,
            status_reason="published",
            attempt_token=None,
            lease_expires_at=None,
            finished_at=_now,
            expires_at=_now + retention,
            rows_written=rows,
            bytes_written=bytes_,
            checkpoint=None,
            error_code=None,
            error_message=None,
            result_key=key,
            result_rows=rows,
            result_bytes=bytes_,
            result_sha256=sha256,
            result_as_of=as_of,
            result_consistency=consistency,
            result_expires_at=_now + result_ttl,
        )
    )
    return result.rowcount == 1


def requeue(
    conn: sa.Connection,
    job_id: uuid.UUID,
    *,
    token: uuid.UUID,
    after: dt.timedelta,
    reason: str,
    counted: bool,
    checkpoint: dict[str, Any] | None = None,
    keep_checkpoint: bool = False,
) -> bool:
    """`running -> queued`, due `after` from now; `counted`: as one of the job's few attempts.

    `keep_checkpoint`: the one in the row stays.
    """
    result = conn.execute(
        sa.update(jobs)
        .where(
            jobs.c.id == job_id,
            jobs.c.attempt_token == token,
            jobs.c.status == JobStatus.RUNNING,
            jobs.c.cancel_requested_at.is_(None),
        )
        .values(
            status=JobStatus.QUEUED,
            status_reason=reason,
            attempt_token=None,
            lease_expires_at=None,
            available_at=_now + after,
            rung_at=None,
            attempts=jobs.c.attempts - (0 if counted else 1),
            checkpoint=jobs.c.checkpoint if keep_checkpoint else checkpoint,
        )
    )
    return result.rowcount == 1


def note_taken_over(conn: sa.Connection, job_id: uuid.UUID, *, token: uuid.UUID) -> None:
    """Tells the attempt that handed over that its snapshot is needed no more."""
    conn.execute(
        sa.update(jobs)
        .where(jobs.c.id == job_id, jobs.c.attempt_token == token)
        .values(checkpoint=jobs.c.checkpoint.op("||")(sa.cast({"taken_over": True}, pg.JSONB)))
    )


def is_taken_over(conn: sa.Connection, job_id: uuid.UUID, *, generation: int) -> bool:
    """Whether nobody needs the snapshot of the checkpoint of this generation any more."""
    return not conn.scalar(sa.select(_waits(generation)).where(jobs.c.id == job_id))


def postpone(
    conn: sa.Connection, job_id: uuid.UUID, *, generation: int, after: dt.timedelta
) -> None:
    """An export that was handed over and that nobody took is due later."""
    conn.execute(
        sa.update(jobs)
        .where(jobs.c.id == job_id, jobs.c.status == JobStatus.QUEUED, _waits(generation))
        .values(available_at=_now + after, rung_at=None)
    )


def _waits(generation: int) -> sa.ColumnElement[bool]:
    return sa.and_(
        jobs.c.checkpoint["generation"].astext == str(generation),
        jobs.c.checkpoint["taken_over"].astext == "false",
    )


def drop_checkpoint(conn: sa.Connection, job_id: uuid.UUID, *, token: uuid.UUID) -> bool:
    """The attempt starts over under a prefix of its own; the old upload is left to be cleaned."""
    result = conn.execute(
        sa.update(jobs)
        .where(jobs.c.id == job_id, jobs.c.attempt_token == token)
        .values(checkpoint=None, rows_written=0, bytes_written=0)
    )
    conn.execute(sa.update(attempts).where(attempts.c.token == token).values(upload_token=token))
    return result.rowcount == 1


def absorb_attempts(conn: sa.Connection, job_id: uuid.UUID, *, upload_token: uuid.UUID) -> None:
    """Attempts whose upload became the result have nothing of their own left to clean."""
    conn.execute(
        sa.update(attempts)
        .where(
            attempts.c.job_id == job_id,
            attempts.c.upload_token == upload_token,
            attempts.c.cleaned_at.is_(None),
        )
        .values(cleaned_at=_now)
    )


def end(
    conn: sa.Connection,
    job_id: uuid.UUID,
    *,
    token: uuid.UUID,
    status: JobStatus,
    reason: str,
    retention: dt.timedelta,
    error_code: str | None = None,
    error_message: str | None = None,
) -> bool:
    """`running -> failed | cancelled`."""
    result = conn.execute(
        sa.update(jobs)
        .where(
            jobs.c.id == job_id, jobs.c.attempt_token == token, jobs.c.status == JobStatus.RUNNING
        )
        .values(
            status=status,
            status_reason=reason,
            attempt_token=None,
            lease_expires_at=None,
            finished_at=_now,
            expires_at=_now + retention,
            checkpoint=None,
            error_code=error_code,
            error_message=error_message,
        )
    )
    return result.rowcount == 1


def close_attempt(
    conn: sa.Connection,
    token: uuid.UUID,
    *,
    outcome: str,
    rows: int = 0,
    bytes_: int = 0,
    as_of: dt.datetime | None = None,
    error_code: str | None = None,
    error_detail: str | None = None,
) -> None:
    """Writes how an attempt ended, unless the dispatcher has already done so."""
    conn.execute(
        sa.update(attempts)
        .where(attempts.c.token == token, attempts.c.finished_at.is_(None))
        .values(
            finished_at=sa.func.clock_timestamp(),
            cleaned_at=_now if outcome == "published" else None,
            outcome=outcome,
            rows_written=rows,
            bytes_written=bytes_,
            as_of=as_of,
            error_code=error_code,
            error_detail=error_detail,
        )
    )


def cancel(
    conn: sa.Connection, job_id: uuid.UUID, *, client_id: uuid.UUID | None, retention: dt.timedelta
) -> Job | None:
    """A queued job ends at once, a running one is marked for its worker; None if it has ended.

    The second cancel of a running job changes nothing and answers the job.
    """
    statement = (
        sa.update(jobs)
        .where(jobs.c.id == job_id, jobs.c.status.in_([JobStatus.QUEUED, JobStatus.RUNNING]))
        .values(cancelled("cancelled while queued", retention=retention))
        .returning(jobs)
    )
    if client_id is not None:
        statement = statement.where(jobs.c.client_id == client_id)
    row = conn.execute(statement).first()
    return _job(row) if row else None


def cancelled(reason: str, *, retention: dt.timedelta) -> dict[str, Any]:
    """The values that cancel an unfinished job: it ends if it is queued, else it is marked."""
    queued = jobs.c.status == JobStatus.QUEUED
    return {
        "cancel_requested_at": sa.func.coalesce(jobs.c.cancel_requested_at, _now),
        "status": sa.case((queued, JobStatus.CANCELLED.value), else_=jobs.c.status),
        "status_reason": sa.case((queued, reason), else_=jobs.c.status_reason),
        # So that the upload of an export that was handed over is nobody's any more.
        "checkpoint": sa.case((queued, sa.null()), else_=jobs.c.checkpoint),
        "finished_at": sa.case((queued, _now), else_=jobs.c.finished_at),
        "expires_at": sa.case((queued, _now + retention), else_=jobs.c.expires_at),
    }


def expired_leases(conn: sa.Connection, *, limit: int) -> list[uuid.UUID]:
    """Running jobs whose worker has not been heard of for longer than its lease."""
    return list(
        conn.scalars(
            sa.select(jobs.c.id)
            .where(jobs.c.status == JobStatus.RUNNING, jobs.c.lease_expires_at < _now)
            .limit(limit)
        )
    )


def rescue(
    conn: sa.Connection,
    job_ids: Sequence[uuid.UUID],
    *,
    delays: Sequence[dt.timedelta],
    retention: dt.timedelta,
) -> list[tuple[uuid.UUID, JobStatus]]:
    """Takes jobs from workers that were lost, by the rule that a worker's own failure obeys.

    Cancelled if that was asked for, failed after the last attempt, else queued after its delay.
    """
    rows = conn.execute(
        _RESCUE,
        {
            "ids": list(job_ids),
            "delays": [*delays, dt.timedelta(0)],
            "retries": len(delays),
            "retention": retention,
        },
    )
    return [(row.id, JobStatus(row.status)) for row in rows]


def due(
    conn: sa.Connection, *, ahead: dt.timedelta, ring_again_after: dt.timedelta, limit: int
) -> list[tuple[uuid.UUID, float]]:
    """Jobs to ring for, each with the seconds until it is due (0: now).

    Those just submitted are left to the submit's own doorbell, those just rung for to theirs.
    """
    seconds = sa.func.greatest(0, sa.extract("epoch", jobs.c.available_at - _now))
    rows = conn.execute(
        sa.select(jobs.c.id, seconds.label("seconds"))
        .where(
            jobs.c.status == JobStatus.QUEUED,
            jobs.c.available_at <= _now + ahead,
            sa.or_(jobs.c.rung_at.is_(None), jobs.c.rung_at < _now - ring_again_after),
            sa.or_(
                jobs.c.available_at > jobs.c.created_at,
                jobs.c.created_at < _now - dt.timedelta(seconds=5),
            ),
        )
        .order_by(jobs.c.available_at)
        .limit(limit)
    )
    return [(row.id, float(row.seconds)) for row in rows]


def due_in(conn: sa.Connection, job_id: uuid.UUID) -> float | None:
    """Seconds until the job is due (0: it is), None where it is not queued."""
    seconds = sa.extract("epoch", jobs.c.available_at - sa.func.clock_timestamp())
    found = conn.scalar(
        sa.select(seconds).where(jobs.c.id == job_id, jobs.c.status == JobStatus.QUEUED)
    )
    return None if found is None else max(0.0, float(found))


def mark_rung(conn: sa.Connection, job_ids: Iterable[uuid.UUID]) -> None:
    """Notes that a doorbell went out, so that the next tick does not send another."""
    conn.execute(
        sa.update(jobs)
        .where(jobs.c.id == any_of(job_ids), jobs.c.status == JobStatus.QUEUED)
        .values(rung_at=_now)
    )


@dataclasses.dataclass(frozen=True)
class Remains:
    """An attempt that ended without publishing and may have left something in S3."""

    token: uuid.UUID
    upload_token: uuid.UUID
    client_id: uuid.UUID
    job_id: uuid.UUID


def attempts_to_clean(
    conn: sa.Connection, *, worker_life: dt.timedelta, limit: int
) -> list[Remains]:
    """Ended, unpublished attempts whose uploads are not yet known to be gone.

    An attempt that handed its upload over is left alone until the job has no checkpoint any more,
    or has ended.
    One whose worker was lost comes twice: at once, and when that worker cannot be alive any more,
    as it may have written something after the first time.
    """
    longest = _now - worker_life
    rows = conn.execute(
        sa.select(
            attempts.c.token, attempts.c.upload_token, attempts.c.client_id, attempts.c.job_id
        )
        .join_from(attempts, jobs, jobs.c.id == attempts.c.job_id)
        .where(
            attempts.c.finished_at.is_not(None),
            attempts.c.cleaned_at.is_(None),
            sa.or_(attempts.c.erased_at.is_(None), attempts.c.started_at < longest),
            sa.or_(
                jobs.c.finished_at.is_not(None),
                jobs.c.checkpoint.is_(None),
                jobs.c.checkpoint["upload_token"].astext
                != sa.cast(attempts.c.upload_token, sa.Text),
            ),
            sa.or_(
                jobs.c.result_key.is_(None),
                jobs.c.result_deleted_at.is_not(None),
                sa.func.strpos(jobs.c.result_key, sa.cast(attempts.c.upload_token, sa.Text)) == 0,
            ),
        )
        .order_by(attempts.c.erased_at.is_not(None), attempts.c.finished_at)
        .limit(limit)
    )
    return [Remains(row.token, row.upload_token, row.client_id, row.job_id) for row in rows]


def mark_cleaned(
    conn: sa.Connection, tokens: Iterable[uuid.UUID], *, worker_life: dt.timedelta
) -> None:
    """Notes that nothing of them is left: for good only where their worker has surely ended."""
    ended = sa.or_(attempts.c.outcome != "worker_lost", attempts.c.started_at < _now - worker_life)
    conn.execute(
        sa.update(attempts)
        .where(attempts.c.token == any_of(tokens))
        .values(erased_at=_now, cleaned_at=sa.case((ended, _now)))
    )


def live_tokens(conn: sa.Connection, tokens: Iterable[uuid.UUID]) -> set[uuid.UUID]:
    """Which of these upload tokens a running or handed-over attempt may still write to.

    An upload has the token of the attempt that began it; others of its job may have gone on.
    """
    began = attempts.alias("began")
    rows = conn.scalars(
        sa.select(began.c.token)
        .distinct()
        .join_from(began, jobs, jobs.c.id == began.c.job_id)
        .join(attempts, attempts.c.job_id == jobs.c.id)
        .where(
            began.c.token == any_of(tokens),
            began.c.token == attempts.c.upload_token,
            jobs.c.finished_at.is_(None),
            sa.or_(
                attempts.c.finished_at.is_(None),
                jobs.c.checkpoint["upload_token"].astext == sa.cast(began.c.token, sa.Text),
            ),
        )
    )
    return set(rows)


def forget_expired_keys(conn: sa.Connection, *, limit: int) -> int:
    """Frees idempotency keys whose time is over, a bounded batch."""
    expired = _batch(
        jobs.c.idempotency_key.is_not(None),
        jobs.c.idempotency_expires_at <= _now,
        first=jobs.c.idempotency_expires_at,
        limit=limit,
    )
    result = conn.execute(
        sa.update(jobs)
        .where(jobs.c.id.in_(expired))
        .values(idempotency_key=None, idempotency_expires_at=None)
    )
    return result.rowcount


def expired_results(
    conn: sa.Connection, *, grace: dt.timedelta, limit: int
) -> list[tuple[uuid.UUID, str]]:
    """Results past their time and grace, or of removed clients, with their keys."""
    rows = conn.execute(
        sa.select(jobs.c.id, jobs.c.result_key)
        .where(
            jobs.c.status == JobStatus.SUCCEEDED,
            jobs.c.result_expires_at.is_not(None),
            jobs.c.result_deleted_at.is_(None),
            jobs.c.result_expires_at <= _now - grace,
        )
        .order_by(jobs.c.result_expires_at)
        .limit(limit)
    )
    return [(row.id, row.result_key) for row in rows]


def mark_results_deleted(conn: sa.Connection, job_ids: Iterable[uuid.UUID]) -> None:
    conn.execute(sa.update(jobs).where(jobs.c.id == any_of(job_ids)).values(result_deleted_at=_now))


def delete_expired(conn: sa.Connection, *, limit: int) -> int:
    """Deletes final jobs past retention of which nothing is left in S3, with their audit trail."""
    left = sa.exists().where(
        attempts.c.job_id == jobs.c.id,
        attempts.c.cleaned_at.is_(None),
    )
    gone = _batch(
        jobs.c.expires_at.is_not(None),
        jobs.c.expires_at <= _now,
        jobs.c.finished_at.is_not(None),
        sa.or_(jobs.c.result_key.is_(None), jobs.c.result_deleted_at.is_not(None)),
        sa.not_(left),
        first=jobs.c.expires_at,
        limit=limit,
    )
    return conn.execute(sa.delete(jobs).where(jobs.c.id.in_(gone))).rowcount


def attempts_of(conn: sa.Connection, job_id: uuid.UUID) -> list[dict[str, Any]]:
    """Every attempt of the job, oldest first, with causes: for operators, never for customers."""
    rows = conn.execute(
        sa.select(attempts).where(attempts.c.job_id == job_id).order_by(attempts.c.started_at)
    )
    return [dict(row._mapping) for row in rows]


def transitions_of(conn: sa.Connection, job_id: uuid.UUID) -> list[dict[str, Any]]:
    """The job's changes of state, oldest first."""
    rows = conn.execute(
        sa.select(transitions).where(transitions.c.job_id == job_id).order_by(transitions.c.id)
    )
    return [dict(row._mapping) for row in rows]


def _batch(
    *conditions: sa.ColumnElement[bool], first: sa.ColumnElement[Any], limit: int
) -> sa.ScalarSelect[Any]:
    """Ids of a bounded batch that nobody else has locked, as a subquery; lowest `first` come first.

    The order makes the planner read the index of that column, wherever the rows are.
    """
    return (
        sa.select(jobs.c.id)
        .where(*conditions)
        .order_by(first)
        .limit(limit)
        .with_for_update(skip_locked=True)
        .scalar_subquery()
    )


_job_columns = ", ".join(f"j.{column.name}" for column in jobs.columns)
_job_types = list(jobs.columns)

# ON CONFLICT names the partial unique index: whoever comes second with a key gets no row.
_INSERT = (
    sa.text(f"""
INSERT INTO jobplatform.jobs AS j (
    id, client_id, plan, template_name, template_version, parameters, metadata, format, compression,
    status, status_reason, run_at, created_at, available_at, max_attempts,
    idempotency_key, idempotency_expires_at, request_hash)
SELECT :id, :client_id, :plan, :template_name, :template_version, :parameters, :metadata, :format,
    :compression, 'queued', 'submitted', CAST(:run_at AS timestamptz), now(),
    greatest(now(), CAST(:run_at AS timestamptz)), CAST(:max_attempts AS integer),
    CAST(:idempotency_key AS text),
    CASE WHEN CAST(:idempotency_key AS text) IS NOT NULL
        THEN now() + CAST(:idempotency_ttl AS interval) END,
    :request_hash
WHERE (
    SELECT count(*) FROM (
        (SELECT 1 FROM jobplatform.jobs WHERE client_id = :client_id AND status = 'queued'
         LIMIT CAST(:max_queued AS integer))
        UNION ALL
        (SELECT 1 FROM jobplatform.jobs WHERE client_id = :client_id AND status = 'running'
         LIMIT CAST(:max_queued AS integer))
    ) AS unfinished
) < CAST(:max_queued AS integer)
ON CONFLICT (client_id, idempotency_key) WHERE idempotency_key IS NOT NULL DO NOTHING
RETURNING {_job_columns}
""")
    .bindparams(
        sa.bindparam("id", type_=sa.Uuid()),
        sa.bindparam("client_id", type_=sa.Uuid()),
        sa.bindparam("parameters", type_=pg.JSONB()),
        sa.bindparam("metadata", type_=pg.JSONB()),
        sa.bindparam("run_at", type_=sa.DateTime(timezone=True)),
        sa.bindparam("idempotency_ttl", type_=sa.Interval()),
    )
    .columns(*_job_types)
)

# Made once: building it costs as much as running it, and every replay runs it.
_FIND_BY_KEY = sa.select(jobs).where(
    jobs.c.client_id == sa.bindparam("client"),
    jobs.c.idempotency_key == sa.bindparam("key"),
    jobs.c.idempotency_expires_at > _now,
)

# `waiting` hops from client to client along jobs_queued_by_client_idx, so that its cost grows with
# the clients that wait, not with their jobs. SKIP LOCKED lets simultaneous claims take different
# jobs, and none wait for another: that a client was just served needs to be noted only once.
_CLAIM = (
    sa.text(f"""
WITH RECURSIVE waiting AS (
    (SELECT client_id, plan FROM jobplatform.jobs WHERE status = 'queued'
     ORDER BY client_id LIMIT 1)
    UNION ALL
    SELECT next.client_id, next.plan FROM waiting, LATERAL (
        SELECT client_id, plan FROM jobplatform.jobs
        WHERE status = 'queued' AND client_id > waiting.client_id
        ORDER BY client_id LIMIT 1) AS next
), ranked AS (
    SELECT waiting.client_id FROM waiting JOIN jobplatform.clients AS c ON c.id = waiting.client_id
    ORDER BY
        (SELECT count(*) FROM jobplatform.jobs AS r
         WHERE r.client_id = waiting.client_id AND r.status = 'running')
        / coalesce((CAST(:weights AS jsonb) ->> waiting.plan)::float, 1),
        c.last_claimed_at NULLS FIRST
), continuing AS (
    SELECT c.id, c.client_id FROM jobplatform.jobs AS c
    WHERE c.status = 'queued' AND c.checkpoint IS NOT NULL AND c.available_at <= now()
    ORDER BY c.available_at LIMIT 1
    FOR UPDATE SKIP LOCKED
), fresh AS (
    SELECT due.id, due.client_id FROM ranked, LATERAL (
        SELECT q.id, q.client_id FROM jobplatform.jobs AS q
        WHERE q.client_id = ranked.client_id AND q.status = 'queued' AND q.available_at <= now()
        ORDER BY q.available_at, q.id LIMIT 1
        FOR UPDATE SKIP LOCKED) AS due
    LIMIT 1
), next AS (
    (SELECT id, client_id FROM continuing) UNION ALL (SELECT id, client_id FROM fresh) LIMIT 1
), served AS (
    UPDATE jobplatform.clients SET last_claimed_at = clock_timestamp()
    WHERE id = (SELECT c.id FROM jobplatform.clients AS c JOIN next ON next.client_id = c.id
                FOR NO KEY UPDATE OF c SKIP LOCKED)
), attempt AS (
    INSERT INTO jobplatform.attempts (token, upload_token, job_id, client_id, number, worker)
    SELECT :token,
        coalesce((q.checkpoint ->> 'upload_token')::uuid, :token), q.id, q.client_id,
        q.attempts + 1, :worker
    FROM next JOIN jobplatform.jobs AS q ON q.id = next.id
)
UPDATE jobplatform.jobs AS j SET
    status = 'running', status_reason = 'claimed',
    attempts = j.attempts + 1, attempt_token = :token,
    lease_expires_at = now() + CAST(:lease AS interval), started_at = coalesce(j.started_at, now()),
    rows_written = CASE WHEN j.checkpoint IS NULL THEN 0 ELSE j.rows_written END,
    bytes_written = CASE WHEN j.checkpoint IS NULL THEN 0 ELSE j.bytes_written END
FROM next WHERE j.id = next.id
RETURNING {_job_columns}
""")
    .bindparams(
        sa.bindparam("token", type_=sa.Uuid()),
        sa.bindparam("lease", type_=sa.Interval()),
        sa.bindparam("weights", type_=pg.JSONB()),
    )
    .columns(*_job_types)
)

_RESCUE = sa.text("""
WITH lost AS (
    SELECT id, attempt_token,
        CASE WHEN cancel_requested_at IS NOT NULL THEN 'cancelled'
             WHEN attempts > CAST(:retries AS integer) THEN 'failed'
             ELSE 'queued' END AS status
    FROM jobplatform.jobs
    WHERE id = ANY(CAST(:ids AS uuid[])) AND status = 'running' AND lease_expires_at < now()
    FOR UPDATE SKIP LOCKED
), closed AS (
    UPDATE jobplatform.attempts AS a SET finished_at = now(), outcome = 'worker_lost',
        error_code = 'worker_lost', error_detail = 'its lease ended without a heartbeat'
    FROM lost WHERE a.token = lost.attempt_token AND a.finished_at IS NULL
)
UPDATE jobplatform.jobs AS j SET
    status = lost.status, status_reason = 'worker lost',
    attempt_token = NULL, lease_expires_at = NULL, rung_at = NULL,
    available_at = CASE WHEN lost.status = 'queued'
        THEN now() + (CAST(:delays AS interval[]))[least(j.attempts, CAST(:retries AS integer) + 1)]
        ELSE j.available_at END,
    finished_at = CASE WHEN lost.status <> 'queued' THEN now() END,
    expires_at = CASE WHEN lost.status <> 'queued' THEN now() + CAST(:retention AS interval) END,
    checkpoint = CASE WHEN lost.status = 'queued' THEN j.checkpoint END,
    error_code = CASE WHEN lost.status = 'failed' THEN 'worker_lost' END,
    error_message = CASE WHEN lost.status = 'failed'
        THEN 'The report could not be made: its worker stopped on every attempt.' END
FROM lost WHERE j.id = lost.id
RETURNING j.id, j.status
""").bindparams(
    sa.bindparam("ids", type_=pg.ARRAY(sa.Uuid())),
    sa.bindparam("delays", type_=pg.ARRAY(sa.Interval())),
    sa.bindparam("retention", type_=sa.Interval()),
)


def _job(row: Any) -> Job:
    """The one place where a row becomes a Job."""
    result = None
    if row.result_key is not None:
        result = Result(
            key=row.result_key,
            rows=row.result_rows,
            bytes=row.result_bytes,
            sha256=row.result_sha256,
            expires_at=row.result_expires_at,
            as_of=row.result_as_of,
            consistency=row.result_consistency,
            deleted_at=row.result_deleted_at,
        )
    return Job(
        id=row.id,
        client_id=row.client_id,
        plan=row.plan,
        template_name=row.template_name,
        template_version=row.template_version,
        parameters=row.parameters,
        metadata=row.metadata,
        format=ResultFormat(row.format),
        compression=Compression(row.compression),
        status=JobStatus(row.status),
        status_reason=row.status_reason,
        run_at=row.run_at,
        created_at=row.created_at,
        available_at=row.available_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        expires_at=row.expires_at,
        attempts=row.attempts,
        max_attempts=row.max_attempts,
        attempt_token=row.attempt_token,
        lease_expires_at=row.lease_expires_at,
        cancel_requested_at=row.cancel_requested_at,
        rows_written=row.rows_written,
        bytes_written=row.bytes_written,
        rows_estimated=row.rows_estimated,
        error_code=row.error_code,
        error_message=row.error_message,
        result=result,
        idempotency_key=row.idempotency_key,
        request_hash=row.request_hash,
        checkpoint=getattr(row, "checkpoint", None),
        dead_letter_at=row.dead_letter_at,
    )

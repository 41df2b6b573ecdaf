"""The dispatcher's tick: rescue what lost its worker, ring for what is due, remove what dead attempts left.

Nothing here holds a lock between statements; a tick that dies anywhere is made up for by the next, and two at once do
no harm.
"""

import dataclasses

import sqlalchemy as sa

from jobplatform import database, faults, job_store, jobs, results
from jobplatform.observability import logger
from jobplatform.queue import Queue
from jobplatform.settings import JobSettings

_RESCUES = 500
_BELLS = 1_000
_CLEANINGS = 100
SQS_BATCH = 10


@dataclasses.dataclass(frozen=True)
class Tick:
    """What one tick did."""

    rescued: int
    rung: int
    cleaned: int


def ring_due_jobs(
    *, engine: sa.Engine, queue: Queue, bucket: results.Bucket, settings: JobSettings
) -> Tick:
    """One tick. An error with one row is logged and does not stop the others."""
    return Tick(
        rescued=_rescue(engine, settings),
        rung=_ring(engine, queue, settings),
        cleaned=clean_attempts(engine, bucket, limit=_CLEANINGS),
    )


def _rescue(engine: sa.Engine, settings: JobSettings) -> int:
    with database.transaction(engine) as conn:
        lost = job_store.expired_leases(conn, limit=_RESCUES)
    rescued = 0
    for job_id in lost:
        try:
            with database.transaction(engine) as conn:
                done = job_store.rescue(
                    conn, [job_id], delays=settings.retry_delays, retention=settings.retention
                )
        except sa.exc.DatabaseError:
            logger.exception("job not rescued", job_id=str(job_id))
            continue
        faults.point("dispatch.rescued")
        for found, status in done:
            logger.warning("worker lost", job_id=str(found), status=status)
            rescued += 1
    return rescued


def _ring(engine: sa.Engine, queue: Queue, settings: JobSettings) -> int:
    with database.transaction(engine) as conn:
        due = job_store.due(
            conn,
            ahead=settings.ring_ahead,
            ring_again_after=settings.ring_again_after,
            limit=_BELLS,
        )
    rung = 0
    for start in range(0, len(due), SQS_BATCH):
        batch = due[start : start + SQS_BATCH]
        # First the bell, then the mark: a crash between them rings twice, which is harmless.
        taken = queue.ring_all(batch)
        faults.point("dispatch.rung")
        with database.transaction(engine) as conn:
            job_store.mark_rung(conn, taken)
        faults.point("dispatch.marked")
        rung += len(taken)
    return rung


def clean_attempts(engine: sa.Engine, bucket: results.Bucket, *, limit: int) -> int:
    """Erases from S3 what attempts left that ended without publishing."""
    with database.transaction(engine) as conn:
        remains = job_store.attempts_to_clean(conn, limit=limit)
    cleaned = 0
    for attempt in remains:
        try:
            bucket.erase_attempt(
                jobs.attempt_prefix(attempt.client_id, attempt.job_id, attempt.upload_token)
            )
        except Exception:
            logger.exception("attempt not cleaned", job_id=str(attempt.job_id))
            continue
        faults.point("clean.erased")
        with database.transaction(engine) as conn:
            job_store.mark_cleaned(conn, [attempt.token])
        cleaned += 1
    return cleaned

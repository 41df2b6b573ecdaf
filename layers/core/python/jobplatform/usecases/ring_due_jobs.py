"""The dispatcher's tick: rescue what lost its worker, ring for what is due, clean up after both.

Nothing here holds a lock between statements; a tick that dies anywhere is made up for by the next,
and two at once do no harm.
"""

import dataclasses
import datetime as dt
from collections.abc import Callable

import sqlalchemy as sa

from jobplatform import database, errors, faults, job_store, jobs, results
from jobplatform.observability import logger
from jobplatform.queue import DeadLetters, Queue
from jobplatform.settings import JobSettings
from jobplatform.usecases.note_dead_letters import note_dead_letters

_RESCUES = 500
_BELLS = 1_000
_CLEANINGS = 100
SQS_BATCH = 10


@dataclasses.dataclass(frozen=True)
class Tick:
    """What one tick did."""

    rescued: int
    dead_letters: int
    rung: int
    cleaned: int


def ring_due_jobs(
    *,
    engine: sa.Engine,
    queue: Queue,
    dead_letters: DeadLetters | None = None,
    bucket: results.Bucket,
    settings: JobSettings,
) -> Tick:
    """One tick.

    An error with one row is logged and stops no other row; one of a whole duty stops no other duty
    and is raised, in an ExceptionGroup, when the others have had their turn.
    """
    life = settings.worker_life
    done, failed = each(
        {
            "rescued": lambda: _rescue(engine, settings),
            "dead_letters": lambda: (
                note_dead_letters(engine, dead_letters) if dead_letters is not None else 0
            ),
            "rung": lambda: _ring(engine, queue, settings),
            "cleaned": lambda: clean_attempts(engine, bucket, worker_life=life, limit=_CLEANINGS),
        }
    )
    if failed:
        raise ExceptionGroup(f"a tick was incomplete: {done}", failed)
    return Tick(**done)


def each(duties: dict[str, Callable[[], int]]) -> tuple[dict[str, int], list[Exception]]:
    """What every duty has done, and the errors of those that could not be carried out."""
    done: dict[str, int] = {}
    failed: list[Exception] = []
    for name, duty in duties.items():
        try:
            done[name] = duty()
        except Exception as error:
            error.add_note(f"while counting what was {name}")
            failed.append(error)
    return done, failed


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
        except (sa.exc.DatabaseError, errors.ServiceUnavailable):
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
        try:
            with database.transaction(engine) as conn:
                job_store.mark_rung(conn, taken)
        except (sa.exc.DatabaseError, errors.ServiceUnavailable):
            logger.exception("doorbells not noted", job_ids=[str(job_id) for job_id in taken])
        faults.point("dispatch.marked")
        rung += len(taken)
    return rung


def clean_attempts(
    engine: sa.Engine, bucket: results.Bucket, *, worker_life: dt.timedelta, limit: int
) -> int:
    """Erases from S3 what attempts left that ended without publishing."""
    with database.transaction(engine) as conn:
        remains = job_store.attempts_to_clean(conn, worker_life=worker_life, limit=limit)
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
            job_store.mark_cleaned(conn, [attempt.token], worker_life=worker_life)
        cleaned += 1
    return cleaned

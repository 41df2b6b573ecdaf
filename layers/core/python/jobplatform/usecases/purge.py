"""The purge: what is past its time goes, from S3 first and from Postgres then, in bounded batches.

The order matters: a row is the only thing that knows its object, so it goes last. A purge that dies
anywhere is made up for by the next; a job that is not final, or is due in the future, is never
touched.
"""

import dataclasses
import datetime as dt
from collections.abc import Callable

import sqlalchemy as sa

from jobplatform import client_store, database, faults, job_store, results
from jobplatform.observability import logger
from jobplatform.settings import JobSettings, ResultSettings
from jobplatform.usecases.ring_due_jobs import clean_attempts, each

_BATCH = 500


@dataclasses.dataclass(frozen=True, kw_only=True)
class Purged:
    """How many of each are gone; `complete` unless the time ended before the work did."""

    results: int = 0
    uploads: int = 0
    attempts: int = 0
    keys: int = 0
    jobs: int = 0
    clients: int = 0
    complete: bool = True


def purge(
    *,
    engine: sa.Engine,
    bucket: results.Bucket,
    settings: JobSettings,
    result_settings: ResultSettings,
    now: dt.datetime,
    seconds_left: Callable[[], float],
) -> Purged:
    """Purges until nothing is left to purge or less than 30 s of time are.

    An error of one kind stops no other kind, and is raised in an ExceptionGroup after them.
    """

    def enough_time() -> bool:
        return seconds_left() > 30

    def repeat(step: Callable[[], int]) -> int:
        total = 0
        while enough_time() and (done := step()):
            total += done
        return total

    def rows(step: Callable[..., int]) -> Callable[[], int]:
        return lambda: repeat(lambda: _in_transaction(engine, step))

    def attempts() -> int:
        return clean_attempts(engine, bucket, worker_life=settings.worker_life, limit=_BATCH)

    done, failed = each(
        {
            "hastened": rows(client_store.hasten_removed),
            "results": lambda: repeat(
                lambda: _results(engine, bucket, result_settings.purge_grace)
            ),
            "attempts": lambda: repeat(attempts),
            "keys": rows(job_store.forget_expired_keys),
            "jobs": rows(job_store.delete_expired),
            "clients": rows(client_store.delete_removed),
            # Last, as it has to look at all uploads to find the few that are left over.
            "uploads": lambda: _uploads(
                engine, bucket, now - result_settings.upload_ttl, enough_time
            ),
        }
    )
    logger.info("purged", extra=done)
    if failed:
        raise ExceptionGroup(f"a purge was incomplete: {done}", failed)
    done.pop("hastened")
    return Purged(**done, complete=enough_time())


def _in_transaction(engine: sa.Engine, step: Callable[..., int]) -> int:
    with database.transaction(engine) as conn:
        done = step(conn, limit=_BATCH)
        faults.point("purge.before_commit")
    return done


def _results(engine: sa.Engine, bucket: results.Bucket, grace: dt.timedelta) -> int:
    with database.transaction(engine) as conn:
        expired = job_store.expired_results(conn, grace=grace, limit=_BATCH)
    if not expired:
        return 0
    left = set(bucket.delete(key for _, key in expired))
    gone = [job_id for job_id, key in expired if key not in left]
    if left:
        logger.error("results not deleted", keys=sorted(left)[:10], count=len(left))
    faults.point("purge.erased")
    with database.transaction(engine) as conn:
        job_store.mark_results_deleted(conn, gone)
    faults.point("purge.marked")
    return len(gone)


def _uploads(
    engine: sa.Engine,
    bucket: results.Bucket,
    moment: dt.datetime,
    enough_time: Callable[[], bool],
) -> int:
    """Ends uploads that no attempt will finish: of purged jobs, or begun by a worker given up."""
    ended = 0
    batches = bucket.uploads_before(moment)
    while enough_time() and (batch := next(batches, None)) is not None:
        tokens = {key: results.upload_token(key) for key, _ in batch}
        with database.transaction(engine) as conn:
            live = job_store.live_tokens(conn, [token for token in tokens.values() if token])
        for key, upload_id in batch:
            if tokens[key] not in live and enough_time():
                bucket.abort(key, upload_id)
                ended += 1
    return ended

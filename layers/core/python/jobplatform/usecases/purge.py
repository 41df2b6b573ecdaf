"""The purge: what is past its time goes, from S3 first and from Postgres then, in bounded batches.

The order matters: a row is the only thing that knows its object, so it goes last. A purge that dies anywhere is made
up for by the next; a job that is not final, or is due in the future, is never touched.
"""

import dataclasses
import datetime as dt
from collections.abc import Callable

import sqlalchemy as sa

from jobplatform import client_store, database, faults, job_store, results
from jobplatform.observability import logger
from jobplatform.settings import JobSettings, ResultSettings
from jobplatform.usecases.ring_due_jobs import clean_attempts

_BATCH = 500
_UPLOAD_AGE = dt.timedelta(hours=24)


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
    """Purges until nothing is left to purge or less than 30 s of time are."""

    def enough_time() -> bool:
        return seconds_left() > 30

    def repeat(step: Callable[[], int]) -> int:
        total = 0
        while enough_time() and (done := step()):
            total += done
        return total

    with database.transaction(engine) as conn:
        client_store.hasten_removed(conn)
    done = Purged(
        results=repeat(lambda: _results(engine, bucket, result_settings.purge_grace)),
        attempts=repeat(lambda: clean_attempts(engine, bucket, limit=_BATCH)),
        uploads=_uploads(engine, bucket, now),
        keys=repeat(lambda: _in_transaction(engine, job_store.forget_expired_keys)),
        jobs=repeat(lambda: _in_transaction(engine, job_store.delete_expired)),
        clients=repeat(lambda: _in_transaction(engine, client_store.delete_removed)),
        complete=enough_time(),
    )
    logger.info("purged", **dataclasses.asdict(done))
    return done


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


def _uploads(engine: sa.Engine, bucket: results.Bucket, now: dt.datetime) -> int:
    """Ends uploads that no attempt will finish: of purged jobs, or begun by a worker after it was given up."""
    old = bucket.uploads_before(now - _UPLOAD_AGE)
    tokens = {key: results.upload_token(key) for key, _ in old}
    with database.transaction(engine) as conn:
        live = job_store.live_tokens(conn, [token for token in tokens.values() if token])
    ended = 0
    for key, upload_id in old:
        if tokens[key] not in live:
            bucket.abort(key, upload_id)
            ended += 1
    return ended

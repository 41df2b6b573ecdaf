"""Looking at jobs: one, waiting for its end if wanted, or a page of them."""

import base64
import dataclasses
import datetime as dt
import hashlib
import hmac
import json
import time
import uuid
from collections.abc import Callable

import sqlalchemy as sa

from jobplatform import database, errors, job_store, jobs, plans
from jobplatform.client_store import Caller

_POLL_SECONDS = 0.5
_PAGE_BYTES = 240_000
_JOB_BYTES = 1_100
"""Of a job as it is shown, its parameters and metadata left out."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Filters:
    """Which jobs a list shows; a cursor is good for the filters it was given for."""

    status: jobs.JobStatus | None = None
    template_name: str | None = None
    created_after: dt.datetime | None = None
    created_before: dt.datetime | None = None


def get_job(
    job_id: uuid.UUID,
    *,
    caller: Caller,
    engine: sa.Engine,
    wait: float = 0.0,
    max_waits: int,
    pause: Callable[[float], None] = time.sleep,
) -> jobs.Job:
    """The job, at once or after up to `wait` seconds for its end. Raises `errors.JobNotFound`.

    Where `max_waits` requests wait already, or as many of this client as its plan allows, at once
    too: each takes up one execution of the function.
    """
    deadline = time.monotonic() + wait

    def look(bind: sa.Engine | sa.Connection) -> tuple[jobs.Job, float]:
        with database.client_transaction(bind, caller.client_id, single=True) as conn:
            job = job_store.get(conn, job_id, client_id=caller.client_id)
        if job is None:
            raise errors.JobNotFound
        return job, 0.0 if job.is_final else deadline - time.monotonic()

    job, left = look(engine)
    if left <= 0:
        return job
    of_client = plans.PLANS[caller.plan].max_waits
    with database.place(engine, caller.client_id, of_client=of_client, of_all=max_waits) as conn:
        while conn is not None and left > 0:
            pause(min(_POLL_SECONDS, left))
            job, left = look(conn)
    return job


def list_jobs(
    filters: Filters,
    *,
    client_id: uuid.UUID,
    cursor: str | None,
    limit: int,
    secret: bytes,
    engine: sa.Engine,
) -> tuple[list[jobs.Job], str | None]:
    """A page of jobs, newest first, and the cursor of the next. Raises `errors.InvalidCursor`.

    The cursor names the last job seen, so that jobs added meanwhile move nothing; it is signed for
    client and filters. A page of large jobs is shorter than `limit`.
    """
    context = _context(filters, client_id)
    before = None if cursor is None else _open(cursor, context, secret)
    with database.client_transaction(engine, client_id, single=True) as conn:
        found = job_store.list_page(
            conn,
            client_id,
            status=filters.status,
            template_name=filters.template_name,
            created_after=filters.created_after,
            created_before=filters.created_before,
            before=before,
            limit=limit + 1,
        )
    page = _that_fit(found[:limit])
    more = len(found) > len(page)
    return page, _seal(page[-1], context, secret) if more else None


def _that_fit(found: list[jobs.Job]) -> list[jobs.Job]:
    """The first jobs that make an answer of a decent size: clients choose how large a job is."""
    total = 0
    for count, job in enumerate(found):
        total += _JOB_BYTES + len(json.dumps(job.parameters)) + len(json.dumps(job.metadata))
        if total > _PAGE_BYTES:
            return found[: max(1, count)]
    return found


def _context(filters: Filters, client_id: uuid.UUID) -> str:
    return json.dumps([str(client_id), *map(str, dataclasses.astuple(filters))])


def _seal(job: jobs.Job, context: str, secret: bytes) -> str:
    position = f"{job.created_at.isoformat()}|{job.id}".encode()
    return base64.urlsafe_b64encode(_mac(position, context, secret) + position).decode()


def _open(cursor: str, context: str, secret: bytes) -> tuple[dt.datetime, uuid.UUID]:
    try:
        raw = base64.urlsafe_b64decode(cursor.encode("ascii"))
        mac, position = raw[:16], raw[16:]
        if not hmac.compare_digest(mac, _mac(position, context, secret)):
            raise errors.InvalidCursor
        created_at, _, job_id = position.decode().partition("|")
        return dt.datetime.fromisoformat(created_at), uuid.UUID(job_id)
    except (ValueError, UnicodeError) as error:
        raise errors.InvalidCursor from error


def _mac(position: bytes, context: str, secret: bytes) -> bytes:
    return hmac.digest(secret, context.encode() + b"\0" + position, hashlib.sha256)[:16]

"""Handing out a result: a presigned URL, minted now, never stored."""

import dataclasses
import datetime as dt
import uuid

import sqlalchemy as sa

from jobplatform import database, errors, job_store, jobs, results


@dataclasses.dataclass(frozen=True, kw_only=True)
class Download:
    """Where a result and its manifest are, and until when these addresses work."""

    url: str
    manifest_url: str
    expires_at: dt.datetime
    filename: str
    content_type: str
    bytes: int
    sha256: str


def download_result(
    job_id: uuid.UUID,
    *,
    client_id: uuid.UUID,
    engine: sa.Engine,
    bucket: results.Bucket,
    url_ttl: dt.timedelta,
    now: dt.datetime,
) -> Download:
    """Raises `errors.JobNotFound`, `errors.ResultNotReady`, `errors.ResultExpired`."""
    with database.client_transaction(engine, client_id, single=True) as conn:
        job = job_store.get(conn, job_id, client_id=client_id)
    if job is None:
        raise errors.JobNotFound
    if job.status in (jobs.JobStatus.QUEUED, jobs.JobStatus.RUNNING):
        raise errors.ResultNotReady(
            f"The job is {job.status}; its result is not there yet.",
            retry_after=dt.timedelta(seconds=2),
        )
    if job.result is None:
        raise errors.ResultNotReady(f"The job {job.status}; it has no result.")
    if job.result.deleted_at is not None or job.result.expires_at <= now:
        raise errors.ResultExpired
    filename = f"{job.template_name}-{job.id}.{job.result.key.rsplit('/', 1)[-1].partition('.')[2]}"
    gzip = job.compression is jobs.Compression.GZIP
    content_type = "application/gzip" if gzip else job.format.content_type
    ask = min(url_ttl, job.result.expires_at - now)
    url, expires_at = bucket.presign(
        job.result.key, filename=filename, content_type=content_type, ask=ask, now=now
    )
    manifest_url, manifest_expires_at = bucket.presign(
        results.manifest_key(job.result.key),
        filename=results.manifest_key(filename),
        content_type="application/json",
        ask=ask,
        now=now,
    )
    return Download(
        url=url,
        manifest_url=manifest_url,
        # Credentials that are renewed between the two would make them differ.
        expires_at=min(expires_at, manifest_expires_at),
        filename=filename,
        content_type=content_type,
        bytes=job.result.bytes,
        sha256=job.result.sha256,
    )

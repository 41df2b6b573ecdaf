"""Cancelling a job: a queued one ends at once, a running one is stopped by its worker."""

import uuid

import sqlalchemy as sa

from jobplatform import database, errors, faults, job_store, jobs
from jobplatform.settings import JobSettings


def cancel_job(
    job_id: uuid.UUID, *, client_id: uuid.UUID, engine: sa.Engine, settings: JobSettings
) -> jobs.Job:
    """The job as it is now. Raises `errors.JobNotFound`, `errors.JobNotCancellable` for a job that
    has ended otherwise.

    Cancelling twice is the same as once.
    """
    with database.client_transaction(engine, client_id) as conn:
        job = job_store.cancel(conn, job_id, client_id=client_id, retention=settings.retention)
        if job is None:
            job = job_store.get(conn, job_id, client_id=client_id)
            if job is None:
                raise errors.JobNotFound
            if job.status is not jobs.JobStatus.CANCELLED:
                raise errors.JobNotCancellable(
                    f"The job has already ended: it {_ENDED[job.status]}.", status=job.status
                )
        faults.point("cancel.before_commit")
    faults.point("cancel.after_commit")
    return job


_ENDED = {jobs.JobStatus.SUCCEEDED: "succeeded", jobs.JobStatus.FAILED: "failed"}

"""Jobs made and looked at beside the API, with the settings of the functions' environment."""

import datetime as dt
import uuid
from typing import Any

from jobplatform import aws, client_store, database, job_store, queue
from jobplatform.jobs import Compression, Job, JobStatus, Result, ResultFormat
from jobplatform.settings import DatabaseSettings, JobSettings, QueueSettings
from jobplatform.usecases import submit_job
from tests.benchmarks import events
from tests.benchmarks.bench import PLAN


def submit(
    client_id: uuid.UUID | str,
    template: str,
    parameters: dict[str, Any] | None = None,
    *,
    compression: Compression = Compression.NONE,
) -> Job:
    engine = database.create_engine(DatabaseSettings.from_env(), application_name="benchmarks")
    job, _ = submit_job.submit_job(
        caller=client_store.Caller(uuid.UUID(str(client_id)), PLAN),
        template_name=template,
        parameters=parameters or {},
        metadata={},
        run_at=None,
        format=ResultFormat.CSV,
        compression=compression,
        idempotency_key=None,
        engine=engine,
        queue=queue.Queue(aws.client("sqs"), QueueSettings.from_env().url),
        settings=JobSettings(),
        now=dt.datetime.now(dt.UTC),
        lambda_context=events.Context(),
    )
    engine.dispose()
    return job


def done(job_id: uuid.UUID) -> Result:
    """The result of a job that has to have succeeded."""
    engine = database.create_engine(DatabaseSettings.from_env(), application_name="benchmarks")
    with engine.begin() as conn:
        job = job_store.get(conn, job_id)
    engine.dispose()
    if job is None or job.status is not JobStatus.SUCCEEDED or job.result is None:
        raise AssertionError(f"the job ended as {job}")
    return job.result

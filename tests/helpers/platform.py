"""What most tests do with the platform: submit, run, look."""

import datetime as dt
import io
import uuid
from typing import Any, cast

from infra.local import postgres
from jobplatform import client_store, database, job_store, jobs, results, settings
from jobplatform.usecases import run_job, submit_job


class Context:
    """A Lambda context with plenty of time."""

    function_name = "tests"
    memory_limit_in_mb = 1024
    invoked_function_arn = "arn:aws:lambda:eu-central-1:123456789012:function:tests"
    aws_request_id = "00000000-0000-0000-0000-000000000000"
    log_stream_name = "tests"

    def __init__(self, seconds: float = 60.0) -> None:
        self._seconds = seconds

    def get_remaining_time_in_millis(self) -> int:
        return int(self._seconds * 1000)


def submit(
    worker: run_job.Worker,
    client_id: uuid.UUID,
    template: str,
    parameters: dict[str, Any] | None = None,
    *,
    plan: str = "pro",
    key: str | None = None,
    run_at: dt.datetime | None = None,
    format: jobs.ResultFormat = jobs.ResultFormat.CSV,
    compression: jobs.Compression = jobs.Compression.NONE,
) -> jobs.Job:
    job, _ = submit_job.submit_job(
        caller=client_store.Caller(client_id, plan),
        template_name=template,
        parameters=parameters or {},
        metadata={},
        run_at=run_at,
        format=format,
        compression=compression,
        idempotency_key=key,
        engine=worker.engine,
        queue=worker.queue,
        settings=worker.jobs,
        now=dt.datetime.now(dt.UTC),
        lambda_context=Context(),
    )
    return job


def run(worker: run_job.Worker, job: jobs.Job) -> jobs.Job:
    """Runs the next job, which has to be this one, and answers it as it is then."""
    ran = run_job.run_job(worker, seconds_left=lambda: 60.0)
    assert ran is not None
    assert ran.id == job.id
    return get(worker, job)


def get(worker: run_job.Worker, job: jobs.Job) -> jobs.Job:
    with database.transaction(worker.engine) as conn:
        found = job_store.get(conn, job.id)
    assert found is not None
    return found


def read(bucket: results.Bucket, job: jobs.Job) -> bytes:
    assert job.result is not None
    body = bucket.client.get_object(Bucket=bucket.name, Key=job.result.key)["Body"]
    return cast(bytes, body.read())


def left_in(bucket: results.Bucket) -> list[str]:
    """Everything in the bucket: keys of objects and of unfinished uploads."""
    found = bucket.client.list_objects_v2(Bucket=bucket.name).get("Contents", [])
    uploads = bucket.client.list_multipart_uploads(Bucket=bucket.name).get("Uploads", [])
    return [item["Key"] for item in (*found, *uploads)]


def copy(address: settings.DataDatabaseSettings, query: str) -> bytes:
    """The database's own CSV of a query."""
    assert address.url is not None
    sink = io.BytesIO()
    connection = postgres.connect(address.url)
    try:
        connection.run("SET timezone = 'UTC'")
        connection.run(f"COPY ({query}) TO STDOUT (FORMAT csv, HEADER)", stream=sink)
    finally:
        connection.close()
    return sink.getvalue()

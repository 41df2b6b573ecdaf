"""Running jobs against a real PostgreSQL and an S3 that behaves."""

import gzip
import hashlib
import json
import uuid

import pytest

from jobplatform import jobs, results, settings
from jobplatform.usecases import run_job
from tests.helpers import platform


def test_the_whole_table_equals_the_databases_own_copy(
    worker: run_job.Worker, client_id: uuid.UUID, data: settings.DataDatabaseSettings
) -> None:
    job = platform.submit(worker, client_id, "flights")

    done = platform.run(worker, job)

    expected = platform.copy(data, "SELECT * FROM flights ORDER BY id")
    stored = platform.read(worker.bucket, done)
    assert done.status is jobs.JobStatus.SUCCEEDED
    assert hashlib.sha256(stored).hexdigest() == hashlib.sha256(expected).hexdigest()
    assert done.result is not None
    assert done.result.rows == 336_776
    assert done.result.bytes == len(stored)
    assert done.result.sha256 == hashlib.sha256(stored).hexdigest()


@pytest.mark.parametrize("compression", list(jobs.Compression))
@pytest.mark.parametrize("format", list(jobs.ResultFormat))
@pytest.mark.parametrize("template", ["flights", "delays_by_carrier", "aircraft_rotations"])
def test_every_template_in_every_form(
    worker: run_job.Worker,
    client_id: uuid.UUID,
    template: str,
    format: jobs.ResultFormat,
    compression: jobs.Compression,
) -> None:
    parameters = {"carrier": "OO"} if template == "flights" else {}
    job = platform.submit(
        worker, client_id, template, parameters, format=format, compression=compression
    )

    done = platform.run(worker, job)

    assert done.error_code is None
    assert done.result is not None
    stored = platform.read(worker.bucket, done)
    text = gzip.decompress(stored) if compression is jobs.Compression.GZIP else stored
    lines = text.splitlines()
    header = 0 if format is jobs.ResultFormat.JSONL else 1
    assert len(lines) - header == done.result.rows > 0
    if format is jobs.ResultFormat.JSONL:
        assert all(isinstance(json.loads(line), dict) for line in lines)
    manifest = json.loads(
        worker.bucket.client.get_object(
            Bucket=worker.bucket.name, Key=results.manifest_key(done.result.key)
        )["Body"].read()
    )
    assert sum(part["rows"] for part in manifest["parts"]) == done.result.rows
    assert sum(part["bytes"] for part in manifest["parts"]) == done.result.bytes

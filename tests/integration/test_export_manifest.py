"""The manifest beside a result: what its page says, and what the client's check takes."""

import json
import re
import uuid
from pathlib import Path

import pytest

from jobclient import manifests
from jobplatform import jobs, results
from jobplatform.usecases import run_job
from tests.helpers import pages, platform

pytestmark = pytest.mark.usefixtures("templates")


@pytest.mark.parametrize("compression", list(jobs.Compression))
@pytest.mark.parametrize("format", list(jobs.ResultFormat))
@pytest.mark.parametrize("rows", [0, 10, 120_000], ids=["empty", "one part", "parts"])
def test_a_result_is_what_its_manifest_says(
    worker: run_job.Worker,
    client_id: uuid.UUID,
    tmp_path: Path,
    rows: int,
    format: jobs.ResultFormat,
    compression: jobs.Compression,
) -> None:
    job = platform.submit(
        worker, client_id, "numbers", {"rows": rows}, format=format, compression=compression
    )

    done = platform.run(worker, job)

    assert done.result is not None
    file, manifest = tmp_path / "result", tmp_path / "manifest"
    file.write_bytes(platform.read(worker.bucket, done))
    manifest.write_bytes(
        worker.bucket.client.get_object(
            Bucket=worker.bucket.name, Key=results.manifest_key(done.result.key)
        )["Body"].read()
    )
    assert manifests.verify(file, manifests.load(manifest)).rows == rows
    page = pages.page("docs/reference/results.md")
    documented = {
        name for row in page.rows("The manifest") for name in re.findall(r"`(\w+)`", row[0])
    }
    assert documented == json.loads(manifest.read_text()).keys()

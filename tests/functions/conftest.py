"""The functions as Lambda runs them, on a real PostgreSQL and moto's S3 and SQS."""

from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from jobplatform import aws as clients
from jobplatform import observability, results, settings
from jobplatform import queue as queues
from tests.conftest import BUCKET
from tests.helpers import lambdas
from tests.helpers.api import Api


@pytest.fixture
def bucket(aws: None) -> results.Bucket:
    """By the client that the functions have: making one takes longer than most tests here."""
    client = clients.client("s3")
    client.create_bucket(
        Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": "eu-central-1"}
    )
    return results.Bucket(client, BUCKET)


@pytest.fixture
def queue(aws: None) -> queues.Queue:
    client = clients.client("sqs")
    return queues.Queue(client, client.create_queue(QueueName="jobs")["QueueUrl"])


@pytest.fixture
def environment(
    monkeypatch: pytest.MonkeyPatch,
    address: settings.DatabaseSettings,
    bucket: results.Bucket,
    queue: queues.Queue,
) -> Iterator[None]:
    """What infra puts into the functions' environment, and functions that start anew."""
    dead = clients.client("sqs").create_queue(QueueName="dead")["QueueUrl"]
    for name, value in {
        "DATABASE_URL": address.url,
        "QUEUE_URL": queue.url,
        "QUEUE_DEAD_LETTER_URL": dead,
        "RESULTS_BUCKET": bucket.name,
        "API_CURSOR_SECRET": "secret-of-the-tests",
    }.items():
        monkeypatch.setenv(name, str(value))
    # Read from the environment when Powertools is imported, which was before this.
    monkeypatch.setattr(observability.metrics.provider, "namespace", "JobPlatform")
    lambdas.start_anew()
    yield
    lambdas.start_anew()


@pytest.fixture
def api(environment: None, engine: sa.Engine) -> Api:
    return Api(engine)

"""Real parts for every test: one PostgreSQL a test process, migrated once; S3 and SQS by moto."""

import datetime as dt
import os
import signal
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import boto3
import moto
import pytest
import sqlalchemy as sa
from moto.core import botocore_stubber
from xdist import workermanage

from infra.local import flights, postgres
from jobplatform import (
    client_store,
    database,
    jobs,
    migrations,
    observability,
    results,
    settings,
)
from jobplatform import queue as queues
from jobplatform.usecases import run_job
from tests.helpers import orphans

_OURS = ("DATABASE_", "DATA_DATABASE_", "QUEUE_", "RESULTS_", "JOBS_", "WORKER_", "API_")
BUCKET = "results-bucket"
_TESTS = Path(__file__).parent


@pytest.fixture(autouse=True, scope="session")
def _clean_environ() -> None:
    """What a developer's shell says must not reach a test."""
    for name in list(os.environ):
        if name.startswith(("AWS_", "POWERTOOLS_", "JOBPLATFORM_", *_OURS)):
            del os.environ[name]
    os.environ.update(
        AWS_DEFAULT_REGION="eu-central-1",
        AWS_ACCESS_KEY_ID="testing",
        AWS_SECRET_ACCESS_KEY="testing",
        POWERTOOLS_METRICS_NAMESPACE="JobPlatform",
        POWERTOOLS_SERVICE_NAME="tests",
    )


@pytest.fixture(autouse=True)
def _no_metrics_left() -> Iterator[None]:
    """What runs outside its handler gathers metrics, which the hundredth would flush."""
    yield
    observability.metrics.clear_metrics()


@pytest.fixture(scope="session")
def server(
    tmp_path_factory: pytest.TempPathFactory, _clean_environ: None
) -> Iterator[postgres.LocalPostgres]:
    with (
        postgres.LocalPostgres(tmp_path_factory.mktemp("postgres"), durable=False) as running,
        orphans.stopped_with_us(running.running),
    ):
        yield running


@pytest.fixture(scope="session")
def migrated(server: postgres.LocalPostgres) -> settings.DatabaseSettings:
    """The platform's database, at head."""
    address = settings.DatabaseSettings(url=server.url("platform"))
    engine = database.create_engine(address, application_name="tests")
    migrations.upgrade(engine)
    engine.dispose()
    return address


@pytest.fixture
def address(migrated: settings.DatabaseSettings) -> settings.DatabaseSettings:
    """The platform's database, empty."""
    engine = database.create_engine(migrated, application_name="tests")
    with engine.begin() as conn:
        conn.exec_driver_sql(
            "TRUNCATE jobplatform.clients, jobplatform.api_keys, jobplatform.jobs,"
            " jobplatform.attempts, jobplatform.transitions"
        )
    engine.dispose()
    return migrated


@pytest.fixture
def empty(server: postgres.LocalPostgres) -> Iterator[settings.DatabaseSettings]:
    """A database of its own without anything in it."""
    name = f"empty_{uuid.uuid4().hex}"
    connection = postgres.connect(server.url("postgres"))
    try:
        connection.run(f"CREATE DATABASE {name}")
        yield settings.DatabaseSettings(url=server.url(name))
        connection.run(f"DROP DATABASE {name} WITH (FORCE)")
    finally:
        connection.close()


@pytest.fixture
def engine(address: settings.DatabaseSettings) -> Iterator[sa.Engine]:
    made = database.create_engine(address, application_name="tests")
    yield made
    made.dispose()


@pytest.fixture(scope="session")
def data(server: postgres.LocalPostgres) -> settings.DataDatabaseSettings:
    """The adopter's database, with all 336,776 flights."""
    flights.load(server.url("data"))
    return settings.DataDatabaseSettings(url=server.url("data"))


@pytest.fixture
def aws(_clean_environ: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # moto changes dictionaries that another thread is reading; a real S3 takes both requests.
    one_at_a_time = threading.RLock()
    process = botocore_stubber.BotocoreStubber.process_request

    def process_request(self: botocore_stubber.BotocoreStubber, request: Any) -> Any:
        with one_at_a_time:
            return process(self, request)

    monkeypatch.setattr(botocore_stubber.BotocoreStubber, "process_request", process_request)
    with moto.mock_aws():
        yield


@pytest.fixture
def bucket(aws: None) -> results.Bucket:
    client = boto3.client("s3")
    client.create_bucket(
        Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": "eu-central-1"}
    )
    return results.Bucket(client, BUCKET)


@pytest.fixture
def queue(aws: None) -> queues.Queue:
    client = boto3.client("sqs")
    return queues.Queue(client, client.create_queue(QueueName="jobs")["QueueUrl"])


@pytest.fixture
def client_id(engine: sa.Engine) -> uuid.UUID:
    return new_client(engine, "acme")


def new_client(engine: sa.Engine, name: str) -> uuid.UUID:
    made = jobs.new_id()
    with engine.begin() as conn:
        client_store.create(conn, client_id=made, name=name)
    return made


@pytest.fixture
def worker(
    engine: sa.Engine,
    data: settings.DataDatabaseSettings,
    bucket: results.Bucket,
    queue: queues.Queue,
) -> run_job.Worker:
    """A worker with short times, so that tests need not wait."""
    return run_job.Worker(
        name="test-worker",
        engine=engine,
        data=data,
        bucket=bucket,
        queue=queue,
        jobs=settings.JobSettings(heartbeat=dt.timedelta(milliseconds=50)),
        results=settings.ResultSettings(bucket=bucket.name),
        settings=settings.WorkerSettings(part_bytes=5 * 2**20),
    )


def pytest_configure() -> None:
    """A run that is told to end stops what its fixtures started, as after Ctrl-C.

    A shell starts what runs in its background so that it ignores SIGINT: set that right as well.
    """
    _handle_interrupts(signal.default_int_handler)
    # pytest-xdist would kill the workers before they are done with that.
    workermanage.NodeManager.EXIT_TIMEOUT = 30


def pytest_keyboard_interrupt() -> None:
    """Nor does it stop in the middle of that where it is told so again, as pytest-xdist does."""
    # Not SIG_IGN, which programs that are started then would take over.
    _handle_interrupts(lambda *_: None)


def _handle_interrupts(handler: Callable[[int, FrameType | None], Any]) -> None:
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of one file stay together in a parallel run, so do those that share what is slow to
    make: synthesized templates, a deployment."""
    for item in items:
        folder = item.path.relative_to(_TESTS).parts[0]
        group = folder if folder in {"infra", "e2e", "chaos"} else str(item.path)
        item.add_marker(pytest.mark.xdist_group(group))

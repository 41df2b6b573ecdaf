"""The functions that AWS calls by itself: the dispatcher, the worker and the purge."""

import datetime as dt
import json
import signal
import uuid
from typing import Any

import pytest

from functions.dispatcher import handler as dispatcher
from functions.purge import handler as purge
from functions.worker import handler as worker
from jobplatform import jobs, queue, results, settings
from jobplatform.observability import metrics
from jobplatform.usecases import run_job
from tests.helpers import platform, store
from tests.helpers.api import Api
from tests.helpers.events import load_event
from tests.helpers.platform import Context

FIRST, SECOND = "059f36b4-87a3-44ab-83d2-66197ab00001", "059f36b4-87a3-44ab-83d2-66197ab00002"


@pytest.fixture
def data_database(
    data: settings.DataDatabaseSettings, environment: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATA_DATABASE_URL", data.url or "")


@pytest.fixture
def emitted(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The metrics that the functions write, each as CloudWatch reads it."""
    found: list[dict[str, Any]] = []

    def note(*rest: Any, **named: Any) -> None:
        found.append(dict(metrics.metric_set))
        metrics.clear_metrics()

    monkeypatch.setattr(metrics.provider, "flush_metrics", note)
    return found


def doorbells(queue: queue.Queue) -> list[str]:
    found = queue._client.receive_message(QueueUrl=queue.url, MaxNumberOfMessages=10)
    return [json.loads(message["Body"])["job_id"] for message in found.get("Messages", [])]


@pytest.mark.usefixtures("data_database")
def test_doorbell_makes_the_worker_run_the_job_that_is_next(
    api: Api, bucket: results.Bucket, data: settings.DataDatabaseSettings
) -> None:
    job_id = api.submit(parameters={"carrier": "OO"}).json["id"]

    answer = worker.lambda_handler(load_event("worker_doorbell"), Context())

    assert answer == {"batchItemFailures": []}
    job = store.get(api.engine, uuid.UUID(job_id))
    assert job.status is jobs.JobStatus.SUCCEEDED
    expected = platform.copy(data, "SELECT * FROM flights WHERE carrier = 'OO' ORDER BY id")
    assert platform.read(bucket, job) == expected
    answer = api.call("GET", f"/jobs/{job_id}/download", query={"redirect": "false"})
    assert (answer.status, answer.json["bytes"]) == (200, len(expected))


@pytest.mark.usefixtures("data_database")
def test_doorbell_that_nobody_can_read_fails_alone(api: Api) -> None:
    """It comes to the dead-letter queue; the other's job runs."""
    job_id = api.submit(parameters={"carrier": "OO"}).json["id"]

    answer = worker.lambda_handler(load_event("worker_two_doorbells_one_unreadable"), Context())

    assert answer == {"batchItemFailures": [{"itemIdentifier": SECOND}]}
    assert store.get(api.engine, uuid.UUID(job_id)).status is jobs.JobStatus.SUCCEEDED


@pytest.mark.usefixtures("data_database")
def test_doorbell_without_a_job_is_dropped(api: Api) -> None:
    """Also one for a job that has ended, or was cancelled, or is another worker's."""
    for _ in range(2):
        answer = worker.lambda_handler(load_event("worker_doorbell"), Context())

        assert answer == {"batchItemFailures": []}


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize(
    "body",
    [
        "",
        "[]",
        "1",
        "null",
        "{}",
        '{"version": 1}',
        '{"version": 1, "job_id": "x"}',
        '{"version": 99, "job_id": "0192f5d0-5d1c-7b3e-8a44-3f1d2c9b7e60"}',
        "\ud800",
    ],
)
def test_batch_of_which_nothing_can_be_read_is_all_failed(api: Api, body: str) -> None:
    """Each is answered by its id: SQS takes a malformed answer for the whole batch's failure."""
    event = load_event("worker_two_doorbells_one_unreadable")
    for record in event["Records"]:
        record["body"] = body

    answer = worker.lambda_handler(event, Context())

    assert answer == {"batchItemFailures": [{"itemIdentifier": FIRST}, {"itemIdentifier": SECOND}]}


@pytest.mark.usefixtures("environment")
def test_doorbell_that_nobody_can_read_is_no_longer_hidden(queue: queue.Queue) -> None:
    """So it comes to the dead-letter queue after a few seconds, not after five times 90 minutes."""
    sqs = queue._client
    sqs.send_message(QueueUrl=queue.url, MessageBody="no doorbell")
    [message] = sqs.receive_message(QueueUrl=queue.url, VisibilityTimeout=5400)["Messages"]
    event = load_event("worker_doorbell")
    [record] = event["Records"]
    record |= {"body": message["Body"], "receiptHandle": message["ReceiptHandle"]}

    answer = worker.lambda_handler(event, Context())

    assert answer == {"batchItemFailures": [{"itemIdentifier": record["messageId"]}]}
    [again] = sqs.receive_message(QueueUrl=queue.url)["Messages"]
    assert again["MessageId"] == message["MessageId"]


@pytest.mark.usefixtures("environment")
def test_worker_that_is_told_to_end_gives_back_its_job_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[str] = []
    monkeypatch.setattr(run_job, "give_back", lambda worker: told.append("give back"))
    before = signal.signal(signal.SIGTERM, lambda *_: told.append("end"))
    try:
        assert worker.lambda_handler(load_event("worker_doorbell"), Context())

        signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)

    assert told == ["give back", "end"]


@pytest.mark.usefixtures("environment")
def test_tick_rings_for_what_is_due_and_counts_it(
    api: Api, queue: queue.Queue, emitted: list[dict[str, Any]]
) -> None:
    due = api.submit().json["id"]
    api.submit(run_at=(dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)).isoformat())
    doorbells(queue)
    store.age(api.engine, dt.timedelta(seconds=10))

    ticked = dispatcher.lambda_handler(load_event("dispatcher_every_minute"), Context())

    assert ticked["rung"] == 1
    assert doorbells(queue) == [due]
    (written,) = emitted
    assert written["JobsRung"]["Value"] == [1.0]
    again = dispatcher.lambda_handler(load_event("dispatcher_every_minute"), Context())
    assert again["rung"] == 0, "the bell that is under way is enough"


@pytest.mark.usefixtures("environment")
def test_daily_purge_takes_what_is_past_its_time_and_counts_it(
    api: Api, bucket: results.Bucket, emitted: list[dict[str, Any]]
) -> None:
    old, kept = (uuid.UUID(api.submit().json["id"]) for _ in range(2))
    for job_id in (old, kept):
        running = store.claim(api.engine)
        assert running is not None
        assert running.id == job_id
        key = jobs.result_key(running, store.token_of(running))
        bucket.client.put_object(Bucket=bucket.name, Key=key, Body=b"data")
        store.publish(api.engine, running)
    store.age(api.engine, dt.timedelta(days=31), old)

    done = purge.lambda_handler(load_event("purge_daily"), Context(900))

    assert (done["jobs"], done["results"], done["complete"]) == (1, 1, True)
    assert store.count(api.engine, "jobs") == 1
    assert [str(kept) in key for key in platform.left_in(bucket)] == [True]
    assert emitted[0]["JobsPurged"]["Value"] == [1.0]


@pytest.mark.usefixtures("environment")
def test_purge_without_time_says_that_it_is_not_complete(api: Api) -> None:
    done = purge.lambda_handler(load_event("purge_daily"), Context(5))

    assert done["complete"] is False

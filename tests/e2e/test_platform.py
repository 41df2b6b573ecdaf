"""The platform as its users meet it: deployed by `cdk deploy`, driven over HTTP."""

import concurrent.futures
import datetime as dt
import hashlib
import io
import time
import urllib.parse
import uuid
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from infra.local import postgres
from infra.local.up import LocalTarget
from jobclient import Client

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


def test_the_whole_year_arrives_byte_for_byte(
    target: LocalTarget, client: Client, tmp_path: Path
) -> None:
    job = client.wait(client.submit("flights", {}).id, timeout=60)
    file = client.download(job.id, tmp_path / "flights.csv")

    expected = _copy(target, "SELECT * FROM flights ORDER BY id")
    assert job.status == "succeeded"
    assert job.result is not None
    assert job.result.rows == 336_776
    assert (
        hashlib.sha256(Path(file.path).read_bytes()).digest() == hashlib.sha256(expected).digest()
    )


def test_many_requests_at_once_with_one_key_make_one_job(target: LocalTarget) -> None:
    key = str(uuid.uuid4())
    with httpx.Client(timeout=120, limits=httpx.Limits(max_connections=20)) as http:

        def post(_: int) -> httpx.Response:
            return http.post(
                f"{target.api_url}/jobs",
                json={"template_name": "delays_by_carrier", "parameters": {}},
                headers={"x-api-key": target.keys["pro"], "Idempotency-Key": key},
            )

        with concurrent.futures.ThreadPoolExecutor(20) as pool:
            answers = list(pool.map(post, range(20)))

    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["id"] for answer in answers}) == 1
    replayed = [answer for answer in answers if "Idempotent-Replayed" in answer.headers]
    assert len(replayed) == 19


@pytest.mark.parametrize("key", [None, "wrong-key-wrong-key-wrong-key"])
def test_without_a_valid_key_the_door_stays_shut(target: LocalTarget, key: str | None) -> None:
    answer = httpx.get(f"{target.api_url}/jobs", headers={"x-api-key": key} if key else {})

    assert answer.status_code == 403
    assert answer.headers["content-type"].startswith("application/problem+json")
    assert answer.json()["code"] == "forbidden"


def test_a_plan_that_is_used_up_answers_429_as_a_problem(target: LocalTarget) -> None:
    with httpx.Client(timeout=30) as http:

        def get(_: int) -> httpx.Response:
            return http.get(
                f"{target.api_url}/templates", headers={"x-api-key": target.keys["basic"]}
            )

        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(get, range(60)))

    throttled = [answer for answer in answers if answer.status_code == 429]
    assert throttled
    assert throttled[0].headers["content-type"].startswith("application/problem+json")
    assert throttled[0].json()["code"] == "too_many_requests"
    assert int(throttled[0].headers["Retry-After"]) >= 1


def test_one_client_cannot_see_or_touch_anothers_job(target: LocalTarget, client: Client) -> None:
    mine = client.submit("delays_by_carrier", {})
    other = target.admin().create_client(f"other-{uuid.uuid4()}", "pro")
    headers = {"x-api-key": other.api_key}

    answers = [
        httpx.get(f"{target.api_url}/jobs/{mine.id}", headers=headers),
        httpx.get(f"{target.api_url}/jobs/{mine.id}/download", headers=headers),
        httpx.post(f"{target.api_url}/jobs/{mine.id}/cancel", headers=headers),
    ]
    listed = httpx.get(f"{target.api_url}/jobs", headers=headers).json()

    assert [answer.status_code for answer in answers] == [404, 404, 404]
    assert listed["items"] == []
    assert client.wait(mine.id, timeout=60).status == "succeeded"


def test_a_rotated_key_keeps_the_clients_jobs(target: LocalTarget) -> None:
    admin = target.admin()
    first = admin.create_client(f"rotating-{uuid.uuid4()}", "pro")
    with Client(target.api_url, first.api_key) as before:
        job = before.submit("delays_by_carrier", {})
        before.wait(job.id, timeout=60)

    second = admin.rotate_key(first.client_id)

    with Client(target.api_url, second.new_key.api_key) as after:
        assert after.get(job.id).status == "succeeded"
    answer = httpx.get(f"{target.api_url}/jobs", headers={"x-api-key": first.api_key})
    assert answer.status_code == 403


def test_a_scheduled_job_starts_within_five_seconds_of_its_time(client: Client) -> None:
    run_at = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=90)

    job = client.submit("delays_by_carrier", {}, run_at=run_at)
    done = client.wait(job.id, timeout=120)

    assert done.status == "succeeded"
    assert done.started_at is not None
    assert dt.timedelta(0) <= done.started_at - run_at <= dt.timedelta(seconds=5)


def test_a_job_whose_doorbell_was_lost_is_started_by_the_dispatcher(
    target: LocalTarget, client: Client
) -> None:
    lost = _insert_without_doorbell(target, client)

    done = client.wait(lost, timeout=100)

    assert done.status == "succeeded"


def test_the_url_expires_is_signed_and_names_the_file(client: Client, target: LocalTarget) -> None:
    job = client.wait(client.submit("delays_by_carrier", {}).id, timeout=60)
    answer = httpx.get(
        f"{target.api_url}/jobs/{job.id}/download?redirect=false",
        headers={"x-api-key": target.keys["pro"]},
    ).json()

    good = httpx.get(answer["url"])
    tampered = httpx.get(answer["url"].replace("X-Amz-Signature=", "X-Amz-Signature=0"))
    query = urllib.parse.parse_qs(urllib.parse.urlsplit(answer["url"]).query)

    assert good.status_code == 200
    assert "attachment" in good.headers["content-disposition"]
    assert hashlib.sha256(good.content).hexdigest() == answer["sha256"]
    assert tampered.status_code == 403
    assert int(query["X-Amz-Expires"][0]) <= 900


def test_purge_and_dispatcher_answer_when_they_are_called(target: LocalTarget) -> None:
    for name in ("Purge", "Dispatcher"):
        answer = target.client("lambda").invoke(
            FunctionName=target.outputs[f"{name}FunctionName"],
            Payload=b"{}",
        )
        assert "FunctionError" not in answer, answer["Payload"].read()


def test_a_doorbell_nobody_can_read_ends_in_the_dead_letter_queue(target: LocalTarget) -> None:
    sqs = target.client("sqs")
    sqs.send_message(QueueUrl=target.outputs["QueueUrl"], MessageBody="not a doorbell")
    dead = target.outputs["DeadLetterQueueUrl"]

    def letters() -> list[str]:
        found = sqs.receive_message(QueueUrl=dead, VisibilityTimeout=0, MaxNumberOfMessages=10)
        return [message["Body"] for message in found.get("Messages", [])]

    _until(lambda: "not a doorbell" in letters(), seconds=60)


def test_documentation_is_served_without_a_key(target: LocalTarget) -> None:
    described = httpx.get(f"{target.api_url}/openapi.json")
    page = httpx.get(f"{target.api_url}/docs", headers={"accept-encoding": "gzip"})
    health = httpx.get(f"{target.api_url}/health")

    assert described.json()["openapi"].startswith("3.1")
    assert "swagger-ui" in page.text
    assert health.json()["checks"] == {"database": "ok"}


def _copy(target: LocalTarget, query: str) -> bytes:
    sink = io.BytesIO()
    connection = postgres.connect(str(target.state.data_database_url))
    try:
        connection.run("SET timezone = 'UTC'")
        connection.run(f"COPY ({query}) TO STDOUT (FORMAT csv, HEADER)", stream=sink)
    finally:
        connection.close()
    return sink.getvalue()


def _insert_without_doorbell(target: LocalTarget, client: Client) -> str:
    """A job as a crash between commit and doorbell leaves it: a copy of one that ran."""
    done = client.wait(client.submit("delays_by_carrier", {}).id, timeout=60)
    made = str(uuid.uuid4())
    connection = postgres.connect(str(target.state.database_url))
    try:
        connection.run(
            "INSERT INTO jobplatform.jobs (id, client_id, plan, template_name, template_version,"
            " parameters, metadata, format, compression, status, status_reason, created_at,"
            " available_at, max_attempts)"
            " SELECT CAST(:id AS uuid), client_id, plan, template_name, template_version,"
            " parameters, metadata, format, compression, 'queued', 'submitted', now(), now(), 4"
            " FROM jobplatform.jobs WHERE id = CAST(:done AS uuid)",
            id=made,
            done=done.id,
        )
    finally:
        connection.close()
    return made


def _until(condition: Callable[[], bool], *, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.1)

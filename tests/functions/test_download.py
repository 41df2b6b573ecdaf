"""Handing out results: URLs that say truly how long they work, and clear words for none."""

import datetime as dt
import urllib.parse
import uuid
from typing import Any

import pytest

from jobplatform import aws, jobs
from tests.helpers import lambdas, store
from tests.helpers.api import Answer, Api
from tests.helpers.events import load_event

MINUTE = dt.timedelta(minutes=1)


def succeeded(api: Api, **body: Any) -> str:
    """The id of a job with a result."""
    job_id = str(api.submit(**body).json["id"])
    running = store.claim(api.engine)
    assert running is not None
    assert str(running.id) == job_id
    assert store.publish(api.engine, running, bytes_=1234, sha256="ab" * 32)
    return job_id


def ask(api: Api, job_id: str, **query: str) -> Answer:
    return api.call("GET", f"/jobs/{job_id}/download", query=query or None)


def signed(url: str) -> dict[str, str]:
    return dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(url).query))


def life(url: str) -> float:
    return float(signed(url)["X-Amz-Expires"])


def ends(url: str) -> dt.datetime:
    """When S3 stops taking it."""
    begun = dt.datetime.strptime(signed(url)["X-Amz-Date"], "%Y%m%dT%H%M%SZ")
    return begun.replace(tzinfo=dt.UTC) + dt.timedelta(seconds=life(url))


def expires_at(answer: Answer) -> dt.datetime:
    return dt.datetime.fromisoformat(answer.json["expires_at"])


def test_download_is_a_redirect_to_the_result(api: Api) -> None:
    job_id = succeeded(api)

    answer = ask(api, job_id)

    assert answer.status == 303
    url = answer.headers["location"]
    key = urllib.parse.urlsplit(url).path
    assert key.startswith("/results/") or key.startswith("/results-bucket/results/")
    assert job_id in key
    assert answer.headers["cache-control"] == "no-store"
    assert answer.json["url"] == url


def test_url_as_json_as_the_event_in_events_asks_for_it(api: Api) -> None:
    job_id = succeeded(api)
    event = load_event(
        "api_download_result",
        headers={"x-api-key": api.key},
        multiValueHeaders={"x-api-key": [api.key]},
        path=f"/jobs/{job_id}/download",
        pathParameters={"proxy": f"{job_id}/download"},
    )

    assert api.send(event).status == 200


@pytest.mark.parametrize("value", ["false", "0", "no"])
def test_url_as_json(api: Api, value: str) -> None:
    job_id = succeeded(api)

    answer = ask(api, job_id, redirect=value)

    assert answer.status == 200
    assert "location" not in answer.headers
    assert answer.headers["cache-control"] == "no-store"
    assert answer.json["bytes"] == 1234
    assert answer.json["sha256"] == "ab" * 32
    assert answer.json["filename"] == f"flights-{job_id}.csv"


def test_manifest_has_a_url_of_the_same_life_beside_the_results(api: Api) -> None:
    job_id = succeeded(api)

    answer = ask(api, job_id, redirect="false")

    url, manifest_url = answer.json["url"], answer.json["manifest_url"]
    path = urllib.parse.urlsplit(url).path
    assert urllib.parse.urlsplit(manifest_url).path == path + ".manifest.json"
    assert life(manifest_url) == life(url)
    assert expires_at(answer) <= ends(manifest_url)
    assert signed(manifest_url)["response-content-type"] == "application/json"
    name = f"flights-{job_id}.csv.manifest.json"
    assert name in signed(manifest_url)["response-content-disposition"]


@pytest.mark.parametrize(
    ("format_", "compression", "ending", "content_type"),
    [
        ("csv", "none", ".csv", "text/csv; charset=utf-8"),
        ("csv-excel", "none", ".csv", "text/csv; charset=utf-8"),
        ("jsonl", "none", ".jsonl", "application/jsonl"),
        ("csv", "gzip", ".csv.gz", "application/gzip"),
        ("jsonl", "gzip", ".jsonl.gz", "application/gzip"),
    ],
)
def test_file_is_saved_under_its_name_and_type(
    api: Api, format_: str, compression: str, ending: str, content_type: str
) -> None:
    job_id = succeeded(api, format=format_, compression=compression)

    answer = ask(api, job_id, redirect="false")

    name = f"flights-{job_id}{ending}"
    assert answer.json["filename"] == name
    assert answer.json["content_type"] == content_type
    asked = signed(answer.json["url"])
    assert asked["response-content-disposition"] == f'attachment; filename="{name}"'
    assert asked["response-content-type"] == content_type


def test_url_lives_for_a_quarter_of_an_hour_and_says_so(api: Api) -> None:
    answer = ask(api, succeeded(api), redirect="false")

    assert life(answer.json["url"]) == 900
    late = ends(answer.json["url"]) - expires_at(answer)
    assert dt.timedelta(0) <= late < dt.timedelta(seconds=10), "never later than it is true"


def test_every_request_mints_another_url_and_none_is_kept(api: Api) -> None:
    job_id = succeeded(api)

    url = ask(api, job_id, redirect="false").json["url"]

    signature = signed(url)["X-Amz-Signature"]
    with api.engine.begin() as conn:
        rows = conn.exec_driver_sql("SELECT to_jsonb(j)::text FROM jobplatform.jobs AS j")
        assert not any(signature in row for row in rows.scalars())


def test_url_never_outlives_the_result(api: Api) -> None:
    job_id = succeeded(api)
    end = dt.datetime.now(dt.UTC) + 5 * MINUTE
    store.change(api.engine, uuid.UUID(job_id), result_expires_at=end)

    answer = ask(api, job_id, redirect="false")

    assert 290 <= life(answer.json["url"]) <= 300
    assert expires_at(answer) <= end


def test_url_never_outlives_the_credentials_that_sign_it(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S3 stops taking it at their end, whatever the URL says."""
    job_id = succeeded(api)
    end = dt.datetime.now(dt.UTC).replace(microsecond=0) + 10 * MINUTE
    temporary_credentials(monkeypatch, end)

    answer = ask(api, job_id, redirect="false")

    assert signed(answer.json["url"])["X-Amz-Security-Token"] == "temporary"
    assert 590 <= life(answer.json["url"]) <= 600
    assert end - dt.timedelta(seconds=10) <= expires_at(answer) <= end


def test_credentials_that_live_longer_do_not_lengthen_the_url(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = succeeded(api)
    temporary_credentials(monkeypatch, dt.datetime.now(dt.UTC) + 60 * MINUTE)

    assert life(ask(api, job_id, redirect="false").json["url"]) == 900


def test_credentials_that_do_not_tell_their_end_are_not_trusted_for_long(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of a function on AWS: they are in its environment, without a time."""
    job_id = succeeded(api)
    monkeypatch.setenv("RESULTS_URL_TTL", "PT6H")
    temporary_credentials(monkeypatch, None)

    assert life(ask(api, job_id, redirect="false").json["url"]) == 900


def temporary_credentials(monkeypatch: pytest.MonkeyPatch, end: dt.datetime | None) -> None:
    """As Lambda has them; boto3 reads from there when they end."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "temporary")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "temporary")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "temporary")
    if end is not None:
        monkeypatch.setenv("AWS_CREDENTIAL_EXPIRATION", end.isoformat())
    monkeypatch.setattr("boto3.DEFAULT_SESSION", None)
    aws.client.cache_clear()
    lambdas.start_anew()
    monkeypatch.setattr(aws, "client", aws.client.__wrapped__)


@pytest.mark.parametrize("state", [jobs.JobStatus.QUEUED, jobs.JobStatus.RUNNING])
def test_result_that_is_not_there_yet(api: Api, state: jobs.JobStatus) -> None:
    job_id = api.submit().json["id"]
    if state is jobs.JobStatus.RUNNING:
        store.claim(api.engine)

    answer = ask(api, job_id)

    assert (answer.status, answer.code) == (409, "result_not_ready")
    assert state in answer.json["detail"]
    assert int(answer.headers["retry-after"]) > 0


@pytest.mark.parametrize("state", [jobs.JobStatus.FAILED, jobs.JobStatus.CANCELLED])
def test_job_that_ended_without_a_result(api: Api, state: jobs.JobStatus) -> None:
    job_id = api.submit().json["id"]
    running = store.claim(api.engine)
    assert running is not None
    store.end(api.engine, running, state)

    answer = ask(api, job_id)

    assert (answer.status, answer.code) == (409, "result_not_ready")
    assert state in answer.json["detail"]
    assert "retry-after" not in answer.headers, "waiting does not help"


def test_result_past_its_time_is_gone_at_once_and_its_job_stays(api: Api) -> None:
    job_id = succeeded(api)
    past = dt.datetime.now(dt.UTC) - dt.timedelta(seconds=1)
    store.change(api.engine, uuid.UUID(job_id), result_expires_at=past)

    answer = ask(api, job_id)

    assert (answer.status, answer.code) == (410, "result_expired")
    shown = api.call("GET", f"/jobs/{job_id}").json
    assert (shown["status"], shown["result"]["bytes"]) == ("succeeded", 1234)


def test_result_that_was_purged_is_gone(api: Api) -> None:
    job_id = succeeded(api)
    store.change(api.engine, uuid.UUID(job_id), result_deleted_at=dt.datetime.now(dt.UTC))

    assert ask(api, job_id).code == "result_expired"


def test_job_that_was_purged_never_was(api: Api) -> None:
    job_id = succeeded(api)
    with api.engine.begin() as conn:
        conn.exec_driver_sql("DELETE FROM jobplatform.jobs")

    assert (ask(api, job_id).status, ask(api, job_id).code) == (404, "job_not_found")

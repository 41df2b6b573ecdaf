"""The API, call by call, as DESIGN's table says, driven by the events in events/."""

import concurrent.futures
import datetime as dt
import json
import threading
import time
import urllib.parse
import uuid
from collections.abc import Callable

import pytest

from functions.api import resources
from jobplatform import client_store, database, errors, jobs, plans, problems, queue
from jobplatform.observability import logger
from jobplatform.usecases import list_jobs
from tests.conftest import new_client
from tests.helpers import lambdas, store
from tests.helpers.api import Answer, Api, count_jobs, operations
from tests.helpers.events import load_event

NO_KEY = ("api_health", "api_openapi", "api_docs")


def sent(api: Api, name: str, *, job_id: str | None = None) -> Answer:
    """The answer to an event as AWS sends it, with the key of our client and the id of a job."""
    event = load_event(name)
    if name not in NO_KEY:
        key = {"x-api-key": api.key}
        event = load_event(name, headers=key, multiValueHeaders={"x-api-key": [api.key]})
    if job_id:
        old = event["pathParameters"]["proxy"].partition("/")[0]
        event = json.loads(json.dumps(event).replace(old, job_id))
    return api.send(event)


def seconds_until(text: str) -> float:
    return (dt.datetime.fromisoformat(text) - dt.datetime.now(dt.UTC)).total_seconds()


def lose_database(monkeypatch: pytest.MonkeyPatch) -> None:
    """Callers stay known, so that each route meets the missing database on its own."""
    callers = dict(resources._callers)
    monkeypatch.setenv("DATABASE_URL", "postgresql://nobody@127.0.0.1:9/none")
    lambdas.start_anew()
    resources._callers.update(callers)


def test_submit_accepts_a_job_and_says_where_it_is(api: Api) -> None:
    answer = sent(api, "api_submit_job")

    job = answer.json
    assert answer.status == 202
    base = "https://api.example/prod/jobs"
    assert urllib.parse.urljoin(base, answer.headers["location"]) == f"{base}/{job['id']}"
    assert int(answer.headers["retry-after"]) == 1
    assert "idempotent-replayed" not in answer.headers
    assert job["status"] == "queued"
    assert job["parameters"] == {"carrier": "UA", "origin": "EWR"}
    assert job["metadata"] == {"purpose": "monthly report"}
    assert (job["attempts"], job["max_attempts"]) == (0, 4)
    assert job["progress"] == {"rows": 0, "bytes": 0, "percent": None}
    assert job["links"] == {
        "self": f"/jobs/{job['id']}",
        "download": None,
        "cancel": f"/jobs/{job['id']}/cancel",
    }
    assert job["run_at"] is None
    assert job["created_at"] == job["available_at"]


def test_submit_rings_once(api: Api, queue: queue.Queue) -> None:
    job = api.submit().json

    (message,) = queue._client.receive_message(QueueUrl=queue.url, MaxNumberOfMessages=10)[
        "Messages"
    ]
    assert json.loads(message["Body"])["job_id"] == job["id"]


def test_submit_to_an_address_with_a_slash_at_the_end_says_the_same_place(api: Api) -> None:
    answer = api.call("POST", "/jobs/", body={"template_name": "flights"})

    base = "https://api.example/prod/jobs"
    assert urllib.parse.urljoin(f"{base}/", answer.headers["location"]) == (
        f"{base}/{answer.json['id']}"
    )


def test_job_for_later_waits_for_its_time(api: Api) -> None:
    run_at = dt.datetime.now(dt.UTC) + dt.timedelta(hours=2)

    answer = api.submit(run_at=run_at.isoformat())

    assert dt.datetime.fromisoformat(answer.json["available_at"]) == run_at
    assert dt.datetime.fromisoformat(answer.json["run_at"]) == run_at
    assert answer.headers["retry-after"] == "60"


def test_run_at_a_moment_ago_is_now(api: Api) -> None:
    """Clocks differ: 60 s are forgiven."""
    run_at = dt.datetime.now(dt.UTC) - dt.timedelta(seconds=50)

    job = api.submit(run_at=run_at.isoformat()).json

    assert job["available_at"] == job["created_at"]


def test_times_are_shown_in_utc_whatever_offset_was_sent(api: Api) -> None:
    run_at = dt.datetime.now(dt.timezone(dt.timedelta(hours=9))) + dt.timedelta(days=1)

    job = api.submit(run_at=run_at.isoformat()).json

    assert job["run_at"].endswith("Z")
    assert dt.datetime.fromisoformat(job["run_at"]) == run_at


def test_format_and_compression_are_kept(api: Api) -> None:
    job = api.submit(format="jsonl", compression="gzip").json

    kept = store.get(api.engine, uuid.UUID(job["id"]))
    assert (kept.format, kept.compression) == (jobs.ResultFormat.JSONL, jobs.Compression.GZIP)


def test_metadata_comes_back_as_it_was_sent(api: Api) -> None:
    metadata = {"text": "Zoë ≠ 𝄞 \u2028", "n": [1, 1.5, None, True], "deep": {"a": {"b": []}}}

    job = api.submit(metadata=metadata).json

    assert job["metadata"] == metadata
    assert api.call("GET", f"/jobs/{job['id']}").json["metadata"] == metadata


def test_client_over_its_plans_limit_is_told_to_wait(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(plans.PLANS, "tiny", plans.Plan(**{**vars(plans.BASIC), "max_queued": 2}))
    key = api.new_key(api.client_id, plan="tiny")
    for _ in range(2):
        assert api.submit(key=key).status == 202

    answer = api.submit(key=key)

    assert (answer.status, answer.code) == (429, "too_many_queued_jobs")
    assert int(answer.headers["retry-after"]) > 0
    assert count_jobs(api.engine) == 2
    store.claim(api.engine)
    assert api.submit(key=key).status == 429, "what runs counts as well"


def test_job_is_shown_with_all_its_times(api: Api) -> None:
    job_id = api.submit().json["id"]
    running = store.claim(api.engine)
    assert running is not None
    store.heartbeat(api.engine, running, rows=10, bytes_=100, estimate=40)

    shown = api.call("GET", f"/jobs/{job_id}")

    assert shown.json["status"] == "running"
    assert shown.json["progress"] == {"rows": 10, "bytes": 100, "percent": 25}
    assert shown.json["attempts"] == 1
    assert shown.json["started_at"] >= shown.json["created_at"]
    assert shown.headers["retry-after"] == "1"
    store.publish(api.engine, running, rows=12, bytes_=120)
    ended = api.call("GET", f"/jobs/{job_id}")
    assert ended.json["status"] == "succeeded"
    assert ended.json["progress"] == {"rows": 12, "bytes": 120, "percent": 100}
    assert ended.json["result"]["sha256"] == "0" * 64
    assert ended.json["links"]["download"] == f"/jobs/{job_id}/download"
    assert ended.json["links"]["cancel"] is None
    assert "retry-after" not in ended.headers
    assert 29 < seconds_until(ended.json["expires_at"]) / 86400 <= 30
    assert 6 < seconds_until(ended.json["result"]["expires_at"]) / 86400 <= 7


def test_failed_job_shows_words_for_the_customer_and_no_cause(api: Api) -> None:
    job_id = api.submit().json["id"]
    running = store.claim(api.engine)
    assert running is not None
    store.end(
        api.engine,
        running,
        error_code="database_error",
        error_message="The report could not be made.",
    )
    with api.engine.begin() as conn:
        conn.exec_driver_sql(
            "UPDATE jobplatform.attempts SET error_detail = 'SELECT secret FROM host-name'"
        )

    answer = api.call("GET", f"/jobs/{job_id}")

    assert answer.json["error"] == {
        "code": "database_error",
        "message": "The report could not be made.",
    }
    assert "secret" not in answer.text


def test_wait_answers_at_once_for_a_job_that_has_ended(api: Api) -> None:
    job_id = api.submit().json["id"]
    store.cancel(api.engine, uuid.UUID(job_id))

    answer = sent(api, "api_get_job", job_id=job_id)

    assert (answer.status, answer.json["status"]) == (200, "cancelled")


def waited_for(
    api: Api,
    job_id: uuid.UUID,
    pause: Callable[[float], None],
    *,
    plan: str = "basic",
    client_id: uuid.UUID | None = None,
    max_waits: int = 50,
) -> jobs.Job:
    return list_jobs.get_job(
        job_id,
        caller=client_store.Caller(client_id or api.client_id, plan),
        engine=api.engine,
        wait=20,
        max_waits=max_waits,
        pause=pause,
    )


class Paused(Exception):
    """A request was about to wait."""


def never(seconds: float) -> None:
    raise Paused


def test_no_more_requests_wait_at_once_than_plan_and_function_allow(api: Api) -> None:
    """Each is an execution of the function, of which there are so many and no more."""
    job_id = uuid.UUID(api.submit().json["id"])
    others = new_client(api.engine, "other")
    of_others = store.add(api.engine, others)
    most = plans.BASIC.max_waits
    waiting, ended = threading.Semaphore(0), threading.Event()

    def pause(seconds: float) -> None:
        waiting.release()
        assert ended.wait(30)

    with concurrent.futures.ThreadPoolExecutor(most) as pool:
        held = [pool.submit(waited_for, api, job_id, pause) for _ in range(most)]
        for _ in held:
            assert waiting.acquire(timeout=30)

        assert not waited_for(api, job_id, never).is_final
        with pytest.raises(Paused):
            waited_for(api, of_others, never, client_id=others)
        with pytest.raises(Paused):
            waited_for(api, job_id, never, plan="pro")
        assert not waited_for(api, of_others, never, client_id=others, max_waits=most).is_final

        store.cancel(api.engine, job_id)
        ended.set()
        assert all(each.result(30).is_final for each in held)
    with pytest.raises(Paused):
        waited_for(api, of_others, never, client_id=others, max_waits=1)


def test_place_of_a_request_that_died_is_free_again(api: Api) -> None:
    job_id = uuid.UUID(api.submit().json["id"])

    for _ in range(3):
        with pytest.raises(Paused):
            waited_for(api, job_id, never, max_waits=1)


def test_without_places_nobody_waits_or_locks_anything(api: Api) -> None:
    job_id = uuid.UUID(api.submit().json["id"])

    with database.place(api.engine, api.client_id, of_client=5, of_all=0) as conn:
        assert conn is None
        with api.engine.begin() as looking:
            held = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
            assert looking.exec_driver_sql(held).scalar() == 0
    assert not waited_for(api, job_id, never, max_waits=0).is_final


def test_wait_whose_connection_is_lost_is_an_answer_to_try_again(api: Api) -> None:
    job_id = uuid.UUID(api.submit().json["id"])

    def lose(seconds: float) -> None:
        with api.engine.begin() as conn:
            conn.exec_driver_sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )

    with pytest.raises(errors.ServiceUnavailable):
        waited_for(api, job_id, lose)
    assert api.call("GET", f"/jobs/{job_id}").status == 200


def test_wait_ends_when_the_job_does(api: Api) -> None:
    job_id = uuid.UUID(api.submit().json["id"])
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            store.cancel(api.engine, job_id)

    found = waited_for(api, job_id, pause)

    assert found.status is jobs.JobStatus.CANCELLED
    assert len(pauses) == 3
    assert max(pauses) <= 0.5


def test_wait_for_a_job_that_does_not_end_ends_in_time(api: Api) -> None:
    job_id = api.submit().json["id"]
    began = time.monotonic()

    answer = api.call("GET", f"/jobs/{job_id}", query={"wait": "1"})

    assert (answer.status, answer.json["status"]) == (200, "queued")
    assert 1 <= time.monotonic() - began < 15


def test_wait_for_a_job_that_is_purged_meanwhile(api: Api) -> None:
    job_id = uuid.UUID(api.submit().json["id"])

    def pause(seconds: float) -> None:
        with api.engine.begin() as conn:
            conn.exec_driver_sql("DELETE FROM jobplatform.jobs")

    with pytest.raises(errors.JobNotFound):
        waited_for(api, job_id, pause)


def test_cancel_ends_a_queued_job_at_once_and_twice_is_the_same(api: Api) -> None:
    job_id = api.submit().json["id"]

    first = sent(api, "api_cancel_job", job_id=job_id)
    second = sent(api, "api_cancel_job", job_id=job_id)

    assert (first.status, first.json["status"]) == (202, "cancelled")
    assert (second.status, second.json["status"]) == (202, "cancelled")
    base = f"https://api.example/prod/jobs/{job_id}/cancel"
    assert urllib.parse.urljoin(base, first.headers["location"]) == base.removesuffix("/cancel")


def test_cancel_marks_a_running_job_for_its_worker(api: Api) -> None:
    job_id = api.submit().json["id"]
    store.claim(api.engine)

    answer = api.call("POST", f"/jobs/{job_id}/cancel")

    assert (answer.status, answer.json["status"]) == (202, "running")
    assert answer.json["cancel_requested_at"]


@pytest.mark.parametrize("status", [jobs.JobStatus.SUCCEEDED, jobs.JobStatus.FAILED])
def test_what_has_ended_otherwise_cannot_be_cancelled(api: Api, status: jobs.JobStatus) -> None:
    job_id = api.submit().json["id"]
    running = store.claim(api.engine)
    assert running is not None
    if status is jobs.JobStatus.SUCCEEDED:
        store.publish(api.engine, running)
    else:
        store.end(api.engine, running)

    answer = api.call("POST", f"/jobs/{job_id}/cancel")

    assert (answer.status, answer.code) == (409, "job_not_cancellable")
    assert store.get(api.engine, uuid.UUID(job_id)).status is status


def test_list_shows_the_jobs_that_the_filters_name(api: Api) -> None:
    wanted = api.submit().json
    api.submit("delays_by_carrier")

    answer = sent(api, "api_list_jobs")

    assert answer.json == {"items": [wanted], "next_cursor": None}


def test_catalogue_shows_every_template_with_schema_and_columns(api: Api) -> None:
    items = {item["name"]: item for item in sent(api, "api_list_templates").json["items"]}

    assert {"flights", "delays_by_carrier", "aircraft_rotations"} <= set(items)
    flights = items["flights"]
    assert flights == sent(api, "api_get_template").json
    assert flights["title"] == "Flights that departed New York in 2013"
    assert flights["parameters"]["properties"]["carrier"]["description"]
    assert {"name": "id", "type": "bigint"} in flights["columns"]
    assert all(item["columns"] and item["description"] for item in items.values())


@pytest.mark.parametrize("name", ["nope", "_private", "__init__", "flights.py", "..", "é"])
def test_template_that_is_not_there(api: Api, name: str) -> None:
    answer = api.call("GET", f"/templates/{name}")

    assert (answer.status, answer.code) == (404, "template_not_found")


def test_health_says_what_it_checked(api: Api) -> None:
    answer = sent(api, "api_health")

    assert answer.status == 200
    assert answer.json == {"status": "ok", "version": "0.0.0", "checks": {"database": "ok"}}


def test_health_says_when_the_database_is_away(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    lose_database(monkeypatch)

    answer = sent(api, "api_health")

    assert answer.status == 503
    assert answer.json["checks"] == {"database": "unreachable"}
    assert "127.0.0.1" not in answer.text


def test_everything_else_is_503_when_the_database_is_away(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert api.call("GET", "/jobs").status == 200
    lose_database(monkeypatch)
    job_id = jobs.new_id()

    for method, path in (
        ("POST", "/jobs"),
        ("GET", "/jobs"),
        ("GET", f"/jobs/{job_id}"),
        ("GET", f"/jobs/{job_id}/download"),
        ("POST", f"/jobs/{job_id}/cancel"),
    ):
        answer = api.call(method, path, body={"template_name": "flights"})

        assert (answer.status, answer.code) == (503, "service_unavailable"), path


def test_caller_unknown_while_the_database_is_away_is_503_not_403(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    lose_database(monkeypatch)

    assert api.call("GET", "/templates").status == 503


def test_api_describes_itself(api: Api) -> None:
    answer = sent(api, "api_openapi")

    assert answer.status == 200
    assert answer.json["openapi"] == "3.1.0"
    assert set(answer.json["paths"]) >= {"/jobs", "/jobs/{job_id}", "/health"}


def test_docs_are_a_page_that_needs_nothing_from_elsewhere(api: Api) -> None:
    answer = sent(api, "api_docs")

    assert answer.status == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert "SwaggerUIBundle(" in answer.text
    assert "x-api-key" in answer.text
    assert 'src="http' not in answer.text
    assert 'href="http' not in answer.text


def test_the_type_of_every_problem_leads_to_its_explanation(api: Api) -> None:
    page, _, anchor = problems.TYPE_BASE.partition("#")

    answer = api.call("GET", page, key=None)

    assert answer.status == 200
    for code in problems.codes():
        assert f'id="{anchor}{code}"' in answer.text


def test_address_that_is_not_there(api: Api) -> None:
    for path in ("/", "/nope", "/jobs/1/2/3", "/docs/nope", "/templates/a/b"):
        answer = api.call("GET", path)

        assert (answer.status, answer.code) == (404, "not_found"), path


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "POST"])
def test_method_that_an_address_does_not_know(api: Api, method: str) -> None:
    known: dict[str, set[str]] = {}
    for each, path, _ in operations():
        known.setdefault(path, set()).add(each.upper())
    for path, methods in known.items():
        if method in methods:
            continue

        answer = api.call(method, path.replace("{job_id}", str(jobs.new_id())))

        assert (answer.status, answer.code) == (405, "method_not_allowed"), path
        assert answer.headers["allow"] == ", ".join(sorted(methods))


def test_cause_of_a_failure_stays_with_the_operator(
    api: Api, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise KeyError("the secret of host db.internal")

    monkeypatch.setattr("jobplatform.job_store.get", fail)

    answer = api.call("GET", f"/jobs/{jobs.new_id()}")

    assert (answer.status, answer.code) == (500, "internal_error")
    assert "db.internal" not in answer.text
    (record,) = [record for record in caplog.records if record.levelname == "ERROR"]
    entry = json.loads(logger.registered_handler.format(record))
    assert "db.internal" in entry["exception"]
    assert entry["correlation_id"] == answer.json["instance"]

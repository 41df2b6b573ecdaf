"""The client against a real HTTP server: what it sends, understands and tries again."""

import subprocess
import sys
from datetime import UTC, datetime, timedelta, timezone
from email.utils import format_datetime

import httpx
import pytest

from jobclient import Client, Retry, errors
from tests.unit.jobclient.scripted_server import Reply, problem

JOB = {
    "id": "job-1",
    "template_name": "flights",
    "template_version": "1",
    "parameters": {"carrier": "AA"},
    "metadata": None,
    "status": "queued",
    "run_at": None,
    "created_at": "2026-01-02T03:04:05Z",
    "available_at": "2026-01-02T03:04:05Z",
    "started_at": None,
    "finished_at": None,
    "expires_at": None,
    "progress": {"rows": 0, "bytes": 0, "percent": None},
    "attempts": 0,
    "max_attempts": 4,
    "error": None,
    "result": None,
    "links": {"self": "/jobs/job-1"},
}
RUNNING = JOB | {"status": "running", "attempts": 1}
DONE = RUNNING | {
    "status": "succeeded",
    "result": {
        "rows": 3,
        "bytes": 40,
        "sha256": "ab" * 32,
        "format": "csv",
        "compression": None,
        "expires_at": "2026-01-09T03:04:05Z",
        "as_of": "2026-01-02T03:04:06Z",
        "consistency": "snapshot",
    },
}
FAILED = RUNNING | {"status": "failed", "error": {"code": "too_large", "message": "Too many rows"}}


def accepted(job=JOB, **headers) -> Reply:
    return Reply(status=202, body=job, headers={"Location": "/jobs/job-1", **headers})


# Submit


def test_submit_sends_key_body_and_an_idempotency_key_of_its_own(server, client):
    server.on("POST", "/prod/jobs", accepted())

    job = client.submit("flights", {"carrier": "AA"})

    (request,) = server.requests
    assert request.headers["x-api-key"] == "key-1"
    assert request.json == {"template_name": "flights", "parameters": {"carrier": "AA"}}
    assert len(request.headers["idempotency-key"]) == 36
    assert job.idempotency_key == request.headers["idempotency-key"]
    assert (job.id, job.status, job.replayed) == ("job-1", "queued", False)
    assert job.created_at == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def test_submit_sends_every_option(server, client):
    server.on("POST", "/prod/jobs", accepted())

    client.submit(
        "flights",
        run_at=datetime(2030, 1, 1, tzinfo=timezone(timedelta(hours=2))),
        metadata={"ticket": 7},
        format="jsonl",
        compression="gzip",
        idempotency_key="mine",
    )

    (request,) = server.requests
    assert request.headers["idempotency-key"] == "mine"
    assert request.json == {
        "template_name": "flights",
        "parameters": {},
        "run_at": "2030-01-01T00:00:00+02:00",
        "metadata": {"ticket": 7},
        "format": "jsonl",
        "compression": "gzip",
    }


def test_two_submits_use_two_keys(server, client):
    server.on("POST", "/prod/jobs", accepted())

    assert client.submit("flights").idempotency_key != client.submit("flights").idempotency_key


def test_submit_repeats_its_key_through_every_kind_of_passing_failure(server, make_client):
    client = make_client(retry=Retry(attempts=9, draw=lambda: 1.0))
    server.on(
        "POST",
        "/prod/jobs",
        Reply(drop=True),
        Reply(status=502, body=b"<html>bad gateway</html>"),
        problem(503, "unavailable"),
        problem(504, "gateway_timeout"),
        problem(429, "too_many_requests", headers={"Retry-After": "2"}),
        problem(409, "submit_in_progress", headers={"Retry-After": "1"}),
        accepted(**{"Idempotent-Replayed": "true"}),
    )

    job = client.submit("flights")

    keys = {request.headers["idempotency-key"] for request in server.requests}
    assert len(server.requests) == 7
    assert keys == {job.idempotency_key}
    assert job.replayed


def test_submit_whose_answer_was_cut_is_repeated(server, client):
    server.on("POST", "/prod/jobs", Reply(status=202, body=JOB, cut_at=10), accepted())

    assert client.submit("flights").id == "job-1"
    assert len(server.requests) == 2


def test_retry_after_is_honoured_in_both_forms(server, client, fake_time):
    past = format_datetime(datetime(2020, 1, 1, tzinfo=UTC), usegmt=True)
    server.on(
        "POST",
        "/prod/jobs",
        problem(429, "too_many_requests", headers={"Retry-After": "7"}),
        problem(429, "too_many_requests", headers={"Retry-After": past}),
        accepted(),
    )

    client.submit("flights")

    assert fake_time.slept == [7, 0]


def test_retry_after_as_a_date_is_measured_on_the_servers_clock(fake_time):
    now = datetime(2020, 1, 1, tzinfo=UTC)

    def answer(request: httpx.Request) -> httpx.Response:
        if fake_time.slept:
            return httpx.Response(202, json=JOB)
        dates = {
            "Date": format_datetime(now, usegmt=True),
            "Retry-After": format_datetime(now + timedelta(seconds=11), usegmt=True),
        }
        return httpx.Response(503, headers=dates)

    # A mock, because http.server sends the true Date.
    with Client(
        "http://platform.test", "k", transport=httpx.MockTransport(answer), sleep=fake_time.sleep
    ) as client:
        client.submit("flights")

    assert fake_time.slept == [11]


@pytest.mark.parametrize("value", ["-5", "soon", "1.5e400", "²", "", "Wed, 99 Foo 2020"])
def test_a_retry_after_that_says_nothing_falls_back_to_backoff(server, client, fake_time, value):
    server.on(
        "POST",
        "/prod/jobs",
        problem(429, "too_many_requests", headers={"Retry-After": value.encode().decode("latin1")}),
        accepted(),
    )

    client.submit("flights")

    assert fake_time.slept == [0.5]


def test_backoff_grows_and_is_bounded(server, client, fake_time):
    server.on("GET", "/prod/jobs/job-1", problem(503, "unavailable"))

    with pytest.raises(errors.ServerError) as caught:
        client.get("job-1")

    assert caught.value.code == "unavailable"
    assert len(server.requests) == 4
    assert fake_time.slept == [0.5, 1.0, 2.0]


def test_backoff_is_spread_by_chance():
    low, high = Retry(draw=lambda: 0.0), Retry(draw=lambda: 1.0)

    assert (low.backoff(1), high.backoff(1)) == (0.25, 0.5)
    assert high.backoff(50) == high.max_delay


def test_a_wait_that_is_too_long_is_not_waited(server, client, fake_time):
    server.on("GET", "/prod/jobs/job-1", problem(429, "throttled", headers={"Retry-After": "9000"}))

    with pytest.raises(errors.TooManyRequests) as caught:
        client.get("job-1")

    assert caught.value.retry_after == 9000
    assert fake_time.slept == []


def test_a_used_up_quota_is_not_retried(server, client):
    server.on(
        "GET", "/prod/jobs/job-1", problem(429, "quota_exceeded", headers={"Retry-After": "1"})
    )

    with pytest.raises(errors.TooManyRequests):
        client.get("job-1")

    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, errors.BadRequest),
        (401, errors.Unauthorized),
        (403, errors.Forbidden),
        (404, errors.NotFound),
        (410, errors.Gone),
        (413, errors.PayloadTooLarge),
        (415, errors.ApiError),
        (422, errors.Unprocessable),
        (500, errors.ServerError),
    ],
)
def test_a_final_refusal_is_raised_at_once(server, client, status, kind):
    server.on("POST", "/prod/jobs", problem(status, "some_code", "What is wrong"))

    with pytest.raises(errors.JobClientError) as caught:
        client.submit("flights")

    assert type(caught.value) is kind
    assert caught.value.problem.instance == "request-1"
    assert str(caught.value).startswith(f"What is wrong (some_code, HTTP {status})")
    assert len(server.requests) == 1


def test_a_conflict_is_retried_for_submits_only(server, client):
    server.on("POST", "/prod/jobs/job-1/cancel", problem(409, "job_final"))

    with pytest.raises(errors.Conflict):
        client.cancel("job-1")

    assert len(server.requests) == 1


def test_wrong_fields_are_named(server, client):
    server.on(
        "POST",
        "/prod/jobs",
        problem(
            422,
            "invalid_parameters",
            "The parameters are not right",
            errors=[{"loc": ["parameters", "carrier"], "msg": "too long", "type": "x"}, "junk"],
        ),
    )

    with pytest.raises(errors.Unprocessable) as caught:
        client.submit("flights")

    assert "\n  parameters.carrier: too long" in str(caught.value)


def test_the_gateways_own_refusal_reads_well(server, client):
    server.on("GET", "/prod/jobs/job-1", Reply(status=403, body={"message": "Forbidden"}))

    with pytest.raises(errors.Forbidden, match=r"Forbidden \(http_403, HTTP 403\)"):
        client.get("job-1")


def test_nobody_listening_is_a_transport_error_that_names_the_url(make_client, fake_time):
    with pytest.raises(errors.TransportError, match=r"http://127\.0\.0\.1:9"):
        make_client(base_url="http://127.0.0.1:9").get("job-1")

    assert len(fake_time.slept) == 3


def test_another_web_site_is_an_unexpected_answer(server, client):
    server.on("GET", "/prod/jobs/job-1", Reply(body=b"<html>Welcome</html>"))
    server.on("GET", "/prod/templates", Reply(body={"hello": 1}))
    server.on("GET", "/prod/jobs", Reply(body=[]))

    with pytest.raises(errors.UnexpectedAnswer, match="is this the URL"):
        client.get("job-1")
    with pytest.raises(errors.UnexpectedAnswer):
        client.templates()
    with pytest.raises(errors.UnexpectedAnswer):
        next(client.list())


@pytest.mark.parametrize("url", ["", "example.com/prod", "ftp://example.com"])
def test_a_url_that_is_none_is_refused_at_once(url):
    with pytest.raises(ValueError, match="must begin with https"):
        Client(url, "key")


@pytest.mark.parametrize("key", ["", " \n", "a\r\nX-Evil: 1", "schlüssel"])
def test_a_key_that_is_none_is_refused_at_once(key):
    with pytest.raises(ValueError, match="API key"):
        Client("https://example.com", key)


def test_white_space_around_url_and_key_does_no_harm(server, make_client):
    server.on("GET", "/prod/jobs/job-1", Reply(body=JOB))

    make_client(base_url=f" {server.url}/prod/\n", api_key=" key-1\n").get("job-1")

    assert server.requests[0].headers["x-api-key"] == "key-1"


def test_an_id_cannot_leave_its_path(server, client):
    for job_id in ("../templates", "a/b", "x?limit=1", "x#y"):
        with pytest.raises(errors.NotFound):
            client.get(job_id)
    for job_id in ("", ".", ".."):
        with pytest.raises(ValueError, match="Not an id"):
            client.get(job_id)

    assert [request.path for request in server.requests] == [
        "/prod/jobs/..%2Ftemplates",
        "/prod/jobs/a%2Fb",
        "/prod/jobs/x%3Flimit%3D1",
        "/prod/jobs/x%23y",
    ]


def test_times_without_a_zone_are_refused(client):
    with pytest.raises(ValueError, match="run_at needs a time zone"):
        client.submit("flights", run_at=datetime(2030, 1, 1))
    with pytest.raises(ValueError, match="created_after needs a time zone"):
        client.list(created_after=datetime(2030, 1, 1))


# Answers


def test_a_job_reads_with_fields_of_another_version(server, client):
    newer = DONE | {"status": "paused", "priority": 5, "result": {**DONE["result"], "etag": "x"}}
    older = {"id": "job-1", "status": "queued"}
    server.on("GET", "/prod/jobs/job-1", Reply(body=newer), Reply(body=older))

    first, second = client.get("job-1"), client.get("job-1")

    assert (first.status, first.is_final) == ("paused", False)
    assert first.model_dump()["priority"] == 5
    assert (second.progress.rows, second.result) == (0, None)


def test_a_job_cannot_be_changed(server, client):
    server.on("GET", "/prod/jobs/job-1", Reply(body=JOB))

    with pytest.raises(ValueError, match="frozen"):
        client.get("job-1").status = "succeeded"


def test_raise_for_status_tells_failed_from_cancelled(server, client):
    server.on(
        "GET",
        "/prod/jobs/job-1",
        Reply(body=DONE),
        Reply(body=FAILED),
        Reply(body=RUNNING | {"status": "cancelled"}),
    )

    assert client.get("job-1").raise_for_status().result.rows == 3
    with pytest.raises(errors.JobFailed, match=r"Too many rows \(too_large\)"):
        client.get("job-1").raise_for_status()
    with pytest.raises(errors.JobCancelled, match="was cancelled"):
        client.get("job-1").raise_for_status()


def test_templates_and_health(server, client):
    template = {
        "name": "flights",
        "version": "1",
        "title": "Flights",
        "description": "All flights",
        "parameters": {"type": "object"},
        "columns": [{"name": "carrier", "type": "text"}],
    }
    server.on("GET", "/prod/templates", Reply(body={"items": [template]}))
    server.on("GET", "/prod/templates/flights", Reply(body=template))
    server.on("GET", "/prod/health", Reply(status=503, body={"status": "ill", "database": "down"}))

    assert [one.name for one in client.templates()] == ["flights"]
    assert client.template("flights").columns[0].type == "text"
    assert client.health().model_dump() == {"status": "ill", "database": "down"}
    assert len(server.seen("GET", "/prod/health")) == 1


def test_a_problem_is_no_health(server, client):
    server.on("GET", "/prod/health", problem(504, "gateway_timeout"))

    with pytest.raises(errors.ServerError):
        client.health()


# Lists


def test_list_follows_the_cursors_and_keeps_the_filters(server, client):
    server.on(
        "GET",
        "/prod/jobs",
        Reply(body={"items": [JOB, RUNNING], "next_cursor": "c/1+="}),
        Reply(body={"items": [], "next_cursor": "c2"}),
        Reply(body={"items": [DONE], "next_cursor": None}),
    )

    jobs = client.list(
        status="queued",
        template_name="flights",
        created_after=datetime(2026, 1, 1, tzinfo=UTC),
        page_size=2,
    )

    assert server.requests == []
    assert [job.status for job in jobs] == ["queued", "running", "succeeded"]
    filters = {
        "limit": "2",
        "status": "queued",
        "template_name": "flights",
        "created_after": "2026-01-01T00:00:00+00:00",
    }
    assert [request.query for request in server.requests] == [
        filters,
        {**filters, "cursor": "c/1+="},
        {**filters, "cursor": "c2"},
    ]


def test_list_asks_for_the_next_page_only_when_it_is_wanted(server, client):
    server.on("GET", "/prod/jobs", Reply(body={"items": [JOB], "next_cursor": "c1"}))

    next(client.list())

    assert len(server.requests) == 1


def test_list_that_does_not_advance_ends(server, client):
    server.on("GET", "/prod/jobs", Reply(body={"items": [], "next_cursor": "c1"}))

    with pytest.raises(errors.UnexpectedAnswer, match="does not advance"):
        list(client.list())


# Wait


def test_wait_holds_the_line_and_reports_each_answer(server, client, fake_time):
    def held(job):
        def answer(seen):
            fake_time.now += 20
            return Reply(body=job)

        return answer

    server.on("GET", "/prod/jobs/job-1", held(JOB), held(RUNNING), held(DONE))
    updates = []

    job = client.wait("job-1", on_update=updates.append)

    assert job.status == "succeeded"
    assert [update.status for update in updates] == ["queued", "running", "succeeded"]
    assert [request.query for request in server.requests] == [{"wait": "20"}] * 3
    assert fake_time.slept == []


def test_wait_on_a_platform_that_ignores_wait_polls_in_growing_intervals(server, client, fake_time):
    server.on("GET", "/prod/jobs/job-1", *[Reply(body=RUNNING)] * 3, Reply(body=DONE))

    client.wait("job-1")

    assert fake_time.slept == [0.5, 0.75, 1.125]


def test_wait_on_a_platform_that_refuses_wait_goes_without(server, client):
    def answer(seen):
        return problem(422, "invalid_query") if "wait" in seen.query else Reply(body=DONE)

    server.on("GET", "/prod/jobs/job-1", answer)

    assert client.wait("job-1").status == "succeeded"
    assert [request.query for request in server.requests] == [{"wait": "20"}, {}]


def test_wait_on_a_platform_that_refuses_everything_says_so(server, client):
    server.on("GET", "/prod/jobs/job-1", problem(400, "bad_request"))

    with pytest.raises(errors.BadRequest):
        client.wait("job-1")

    assert len(server.requests) == 2


def test_wait_polls_as_the_platform_asks(server, client, fake_time):
    server.on(
        "GET",
        "/prod/jobs/job-1",
        Reply(body=RUNNING, headers={"Retry-After": "3"}),
        Reply(body=DONE),
    )

    client.wait("job-1")

    assert fake_time.slept == [3]


def test_wait_ends_at_its_deadline_and_the_job_goes_on(server, client, fake_time):
    server.on("GET", "/prod/jobs/job-1", Reply(body=RUNNING, headers={"Retry-After": "4"}))

    with pytest.raises(errors.DeadlineExceeded, match="still running after 10 s") as caught:
        client.wait("job-1", timeout=10)

    assert caught.value.job.status == "running"
    assert fake_time.slept == [4, 4, 2]
    assert [r.query.get("wait") for r in server.requests] == ["10", "6", "2", None]


def test_wait_with_no_time_left_still_looks_once(server, client):
    server.on("GET", "/prod/jobs/job-1", Reply(body=DONE))

    assert client.wait("job-1", timeout=0).status == "succeeded"
    assert server.requests[0].query == {}


def test_wait_returns_a_failed_job(server, client):
    server.on("GET", "/prod/jobs/job-1", Reply(body=FAILED))

    assert client.wait("job-1").error.code == "too_large"


def test_wait_survives_a_platform_that_is_away_for_a_moment(server, client):
    server.on(
        "GET",
        "/prod/jobs/job-1",
        Reply(body=RUNNING),
        Reply(drop=True),
        problem(503, "unavailable"),
        Reply(body=DONE),
    )

    assert client.wait("job-1").status == "succeeded"


# Imports


def test_the_core_works_without_typer_rich_and_boto3():
    # httpx takes Rich where it is installed, so what counts is that it can be missing.
    script = """
import sys
sys.modules.update(dict.fromkeys(["typer", "rich", "boto3", "botocore"]))
import jobclient
jobclient.Client("https://example.com", "key").close()
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_the_core_does_not_load_typer_and_boto3():
    script = "import sys, jobclient; print(*sys.modules)"
    loaded = subprocess.check_output([sys.executable, "-c", script], text=True).split()

    assert not {"typer", "boto3", "botocore"} & set(loaded)

"""The operator's command line, over the same platform as `test_admin.py`."""

import json
import sys

import boto3
import pytest
from moto import mock_aws

from jobclient.cli import ExitCode
from tests.unit.jobclient.admin_platform import API_URL, REGION, AdminPlatform, crash, session
from tests.unit.jobclient.scripted_server import Reply


@pytest.fixture
def platform(server, monkeypatch):
    monkeypatch.setenv("AWS_REGION", REGION)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_ENDPOINT_URL_LAMBDA", server.url)
    # Reading the service descriptions anew for each command line takes most of a test's time.
    only = session()
    asked_for = []

    def make(**arguments):
        asked_for.append(arguments)
        return only

    monkeypatch.setattr(boto3, "Session", make)
    with mock_aws():
        platform = AdminPlatform(server)
        platform.asked_for = asked_for
        yield platform


def test_create_client_prints_the_key_ready_to_paste(platform, jobctl):
    run = jobctl("admin", "create-client", "acme", "--plan", "pro")

    (value,) = platform.gateway_keys().values()
    assert run.code == ExitCode.DONE
    assert run.out.splitlines() == [
        f"export JOBS_API_URL={API_URL}",
        f"export JOBS_API_KEY={value}",
    ]
    assert "shown this once" in run.err


def test_create_client_as_json(platform, jobctl):
    shown = json.loads(jobctl("admin", "create-client", "acme", "--json").out)

    assert platform.gateway_keys() == {shown["api_key_id"]: shown["api_key"]}
    assert shown["api_url"] == API_URL


def test_create_client_that_fails_says_what_was_undone(platform, jobctl):
    platform.breaks["add_key"] = crash("OperationalError", "no database", "log line")

    run = jobctl("admin", "create-client", "acme")

    assert run.code == ExitCode.OPERATOR
    assert "Could not record the key of acme" in run.err
    assert "Undone: client acme (client-1)" in run.err
    assert run.out == ""


def test_the_life_of_a_key(platform, jobctl):
    jobctl("admin", "create-client", "acme")
    jobctl("admin", "add-key", "acme", "--plan", "pro")
    first, second = platform.gateway_keys()

    run = jobctl("admin", "rotate-key", "acme", "--key-id", second, "--grace")
    (third,) = set(platform.gateway_keys()) - {first, second}
    assert f"export JOBS_API_KEY={platform.gateway_keys()[third]}" in run.out
    assert f"Still works, end it with: jobctl admin revoke-key {second}" in run.err
    assert platform.plan_of(third) == ["pro"]

    assert f"Revoked: {second}" in jobctl("admin", "revoke-key", second).err

    run = jobctl("admin", "rotate-key", "acme", "--plan", "basic")
    assert f"Revoked: {first}" in run.err
    assert f"Revoked: {third}" in run.err
    assert len(platform.gateway_keys()) == 1


def test_list_clients_leaves_removed_ones_out_unless_asked(platform, jobctl):
    jobctl("admin", "create-client", "acme")
    jobctl("admin", "create-client", "gone")
    jobctl("admin", "remove-client", "gone", "--yes")

    shown = jobctl("admin", "list-clients").out
    assert "acme" in shown
    assert "2026-01-02 03:04:05Z" in shown
    assert "gone" not in shown
    everything = jobctl("admin", "list-clients", "--all").out
    (row,) = [line for line in everything.splitlines() if "gone" in line]
    assert "gone (removed)" in row
    assert "basic (revoked)" in row
    (acme,) = json.loads(jobctl("admin", "list-clients", "--json").out)
    assert acme["keys"][0]["plan"] == "basic"
    assert acme["created_at"] == "2026-01-02T03:04:05+00:00"


def test_remove_client_asks_first(platform, jobctl):
    jobctl("admin", "create-client", "acme")

    for answer in ("n\n", ""):
        run = jobctl("admin", "remove-client", "acme", stdin=answer)
        assert run.code == ExitCode.FAILED
        assert "Remove acme (client-1) with 1 live keys" in run.err
        assert platform.clients["client-1"]["removed_at"] is None

    run = jobctl("admin", "remove-client", "acme", stdin="y\n")
    assert run.code == ExitCode.DONE
    assert platform.clients["client-1"]["removed_at"]
    assert platform.gateway_keys() == {}


def test_invoke_prints_answer_and_log_apart(platform, jobctl, tmp_path):
    (tmp_path / "event.json").write_text('{"Records": []}')
    platform.answers["worker"] = {"batchItemFailures": []}

    run = jobctl("admin", "invoke", "worker", tmp_path / "event.json")

    assert json.loads(run.out) == {"batchItemFailures": []}
    assert platform.events == [("worker", {"Records": []})]


def test_invoke_of_a_function_that_crashes_shows_its_log(platform, jobctl, tmp_path, server):
    (tmp_path / "event.json").write_text("{}")
    server.on(
        "POST",
        "/2015-03-31/functions/function-purge/invocations",
        crash("KeyError", "'x'", "the log\n"),
    )

    run = jobctl("admin", "invoke", "purge", tmp_path / "event.json")

    assert run.code == ExitCode.OPERATOR
    assert "function-purge failed: KeyError: 'x'" in run.err
    assert "the log" in run.err


def test_invoke_shows_the_log_of_a_success_too(platform, jobctl, tmp_path, server):
    (tmp_path / "event.json").write_text("{}")
    server.on(
        "POST",
        "/2015-03-31/functions/function-purge/invocations",
        Reply(body={"purged": 0}, headers={"X-Amz-Log-Result": "dGhlIGxvZw=="}),
    )

    run = jobctl("admin", "invoke", "purge", tmp_path / "event.json")

    assert (json.loads(run.out), run.err) == ({"purged": 0}, "the log\n")


@pytest.mark.parametrize("content", [None, "{", b"\xff"])
def test_invoke_needs_an_event_that_is_json(platform, jobctl, tmp_path, content):
    event = tmp_path / "event.json"
    if isinstance(content, bytes):
        event.write_bytes(content)
    elif content is not None:
        event.write_text(content)

    assert jobctl("admin", "invoke", "worker", event).code == ExitCode.USAGE


def test_jobs_and_dead_letters_are_looked_at_and_moved(platform, jobctl):
    platform.answers |= {
        "list_jobs": [{"id": "job-1", "status": "failed"}, {"id": "job-2", "client": "acme"}],
        "explain_job": {
            "id": "job-1",
            "attempts": [{"number": 1, "reason": "worker_lost"}],
            "nothing": [],
        },
        "retry_job": {"id": "job-1", "status": "queued"},
        "cancel_job": {"id": "job-1", "status": "cancelled"},
        "list_dead_letters": [],
        "redrive_dead_letters": {"moved": 3},
        "drop_dead_letters": {"dropped": 3},
        "purge": "nothing to do",
    }

    filters = ("--stuck", "--status", "failed", "--client", "acme")
    assert "acme" in jobctl("admin", "list-jobs", *filters).out
    assert "worker_lost" in jobctl("admin", "explain-job", "job-1").out
    assert "queued" in jobctl("admin", "retry-job", "job-1").out
    assert "cancelled" in jobctl("admin", "cancel-job", "job-1").out
    assert "None." in jobctl("admin", "dead-letters", "list").err
    assert json.loads(jobctl("admin", "dead-letters", "redrive", "--json").out) == {"moved": 3}
    assert jobctl("admin", "dead-letters", "drop", stdin="n\n").code == ExitCode.FAILED
    assert "3" in jobctl("admin", "dead-letters", "drop", "--yes").out
    assert "nothing to do" in jobctl("admin", "purge", "--dry-run").out
    assert jobctl("admin", "purge", stdin="n\n").code == ExitCode.FAILED
    assert jobctl("admin", "purge", "-y").code == ExitCode.DONE
    assert platform.commands == [
        ("list_jobs", {"status": "failed", "client": "acme", "stuck": True, "limit": 50}),
        ("explain_job", {"job_id": "job-1"}),
        ("retry_job", {"job_id": "job-1"}),
        ("cancel_job", {"job_id": "job-1"}),
        ("list_dead_letters", {}),
        ("redrive_dead_letters", {}),
        ("drop_dead_letters", {}),
        ("purge", {"dry_run": True}),
        ("purge", {"dry_run": False}),
    ]


def test_a_command_that_the_platform_refuses_says_why(platform, jobctl):
    run = jobctl("admin", "retry-job", "job-1")

    assert run.code == ExitCode.OPERATOR
    assert run.err == "Error: There is no command retry_job (unknown_command)\n"


def test_another_stack_is_named_by_option_or_variable(platform, jobctl, monkeypatch):
    assert "no stack Elsewhere" in jobctl("admin", "list-clients", "--stack", "Elsewhere").err
    monkeypatch.setenv("JOBS_STACK", "Nowhere")
    assert "no stack Nowhere" in jobctl("admin", "list-clients").err


def test_region_and_profile_come_from_options_or_variables(platform, jobctl, monkeypatch):
    jobctl("admin", "list-clients", "--region", "us-east-1", "--profile", "ops")
    jobctl("admin", "list-clients")
    monkeypatch.delenv("AWS_REGION")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-north-1")
    jobctl("admin", "list-clients")

    assert platform.asked_for == [
        {"profile_name": "ops", "region_name": "us-east-1"},
        {"profile_name": None, "region_name": REGION},
        {"profile_name": None, "region_name": "eu-north-1"},
    ]


def test_without_boto3_it_says_what_to_install(jobctl, monkeypatch):
    monkeypatch.delitem(sys.modules, "jobclient.admin", raising=False)
    monkeypatch.setitem(sys.modules, "boto3", None)

    run = jobctl("admin", "list-clients")

    assert run.code == ExitCode.USAGE
    assert "pip install" in run.err

"""The command line as people and scripts use it, against a real HTTP server."""

import hashlib
import json
import os
import signal
import subprocess
import sys

import pytest

from jobclient.cli import ExitCode
from tests.unit.jobclient.scripted_server import Reply, problem, stored

CONTENT = b"id,name\n1,a\n2,b\n"
JOB = {
    "id": "0198c0de-0000-7000-8000-000000000001",
    "template_name": "flights",
    "template_version": "1",
    "parameters": {"carrier": "AA"},
    "status": "queued",
    "created_at": "2026-01-02T03:04:05Z",
    "attempts": 0,
    "max_attempts": 4,
}
RUNNING = JOB | {"status": "running", "progress": {"rows": 1500, "bytes": 9000, "percent": 40}}
RESULT = {
    "rows": 2,
    "bytes": len(CONTENT),
    "sha256": hashlib.sha256(CONTENT).hexdigest(),
    "format": "csv",
    "compression": "none",
    "expires_at": "2026-01-09T03:04:05Z",
}
DONE = JOB | {"status": "succeeded", "attempts": 1, "result": RESULT}
FAILED = JOB | {"status": "failed", "error": {"code": "too_large", "message": "Too many rows"}}
PATH = f"/prod/jobs/{JOB['id']}"


@pytest.fixture
def result(server):
    """A job that ends well, with a result to download."""
    server.on("POST", "/prod/jobs", Reply(status=202, body=JOB))
    server.on("GET", PATH, Reply(body=JOB), Reply(body=RUNNING), Reply(body=DONE))
    ticket = {"url": f"{server.url}/object", "filename": "flights.csv", **RESULT}
    server.on("GET", f"{PATH}/download", Reply(body=ticket))
    server.on("GET", "/object", stored(CONTENT))


# Submit


def test_submit_prints_the_job_and_what_to_do_next(jobctl, result):
    run = jobctl("submit", "flights", "-p", "carrier=AA")

    assert run.code == ExitCode.DONE
    assert JOB["id"] in run.out
    assert "queued" in run.out
    assert f"jobctl wait {JOB['id']}" in run.err


def test_submit_sends_what_the_options_say(server, jobctl, result, tmp_path):
    (tmp_path / "p.json").write_text('{"carrier": "ZZ", "origin": ["JFK"]}')
    run = jobctl(
        *("submit", "flights", "--params-file", tmp_path / "p.json"),
        *("-p", "carrier=A=A", "-p", "year:=2013", "--param", "days:=[1, 2]", "-p", "empty="),
        *("--run-at", "2030-01-01T00:00:00Z", "--idempotency-key", "mine"),
        *("--metadata", "ticket=7", "--metadata", "deep:={}"),
        *("--format", "jsonl", "--compression", "gzip", "--json"),
    )

    (request,) = server.requests
    assert request.headers["idempotency-key"] == "mine"
    assert request.json == {
        "template_name": "flights",
        "parameters": {
            "carrier": "A=A",
            "origin": ["JFK"],
            "year": 2013,
            "days": [1, 2],
            "empty": "",
        },
        "run_at": "2030-01-01T00:00:00+00:00",
        "metadata": {"ticket": "7", "deep": {}},
        "format": "jsonl",
        "compression": "gzip",
    }
    assert json.loads(run.out)["idempotency_key"] == "mine"


def test_submit_reads_parameters_from_stdin(server, jobctl, result):
    jobctl("submit", "flights", "--params-file", "-", stdin='{"carrier": "UA"}')

    assert server.requests[0].json["parameters"] == {"carrier": "UA"}


def test_submit_with_output_follows_the_job_and_downloads(server, jobctl, result, tmp_path):
    run = jobctl("submit", "flights", "--output", tmp_path / "out.csv")

    assert run.code == ExitCode.DONE
    assert (tmp_path / "out.csv").read_bytes() == CONTENT
    assert "succeeded" in run.out
    assert f"{tmp_path}/out.csv: {len(CONTENT)} bytes" in run.out


def test_submit_as_json_prints_one_document(jobctl, result, tmp_path):
    run = jobctl("submit", "flights", "-o", tmp_path, "--json")

    document = json.loads(run.out)
    assert (document["status"], document["result"]["rows"]) == ("succeeded", 2)
    assert document["file"]["path"] == str(tmp_path / "flights.csv")
    assert document["file"]["sha256"] == RESULT["sha256"]


def test_submit_of_a_job_that_fails_prints_it_and_fails(server, jobctl, tmp_path):
    server.on("POST", "/prod/jobs", Reply(status=202, body=JOB))
    server.on("GET", PATH, Reply(body=FAILED))

    run = jobctl("submit", "flights", "--output", tmp_path / "out.csv", "--json")

    assert run.code == ExitCode.JOB_FAILED
    assert json.loads(run.out)["error"]["code"] == "too_large"
    assert "Too many rows (too_large)" in run.err
    assert list(tmp_path.iterdir()) == []


def test_submit_without_an_answer_tells_how_to_repeat_it_safely(server, jobctl):
    server.on("POST", "/prod/jobs", Reply(drop=True))

    run = jobctl("submit", "flights")

    (key,) = {request.headers["idempotency-key"] for request in server.requests}
    assert run.code == ExitCode.UNREACHABLE
    assert f"--idempotency-key {key}" in run.err
    assert "Traceback" not in run.err


def test_submit_shows_which_parameter_is_wrong(server, jobctl):
    wrong = [{"loc": ["body", "parameters", "carrier"], "msg": "too long", "type": "t"}]
    server.on("POST", "/prod/jobs", problem(422, "invalid_request", "Not valid", errors=wrong))

    run = jobctl("submit", "flights", "-p", "carrier=AAAA")

    assert run.code == ExitCode.FAILED
    assert "body.parameters.carrier: too long" in run.err
    assert run.out == ""


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["-p", "carrier"], "'carrier' is not NAME=TEXT or NAME:=JSON"),
        (["-p", "=x"], "is not NAME=TEXT"),
        (["-p", "a=1", "-p", "a=2"], "a is given twice"),
        (["-p", "a:=[1"], "no JSON"),
        (["--metadata", "a:=oops"], "no JSON"),
        (["-p", "a:=NaN"], "JSON"),
        (["--params-file", "/nowhere.json"], "No such file"),
        (["--params-file", "-"], "no JSON"),
        (["--run-at", "2030-01-01T00:00:00"], "no time with a zone"),
        (["--run-at", "tomorrow"], "no time with a zone"),
        (["--idempotency-key", "ü"], "printable ASCII"),
        (["--output", "-"], "goes to a file"),
        (["--timeout", "-1"], "--timeout"),
        (["--url", "example.com"], "must begin with https"),
        (["--key", " "], "API key is empty"),
        (["--nonsense"], "--nonsense"),
    ],
)
def test_a_wrong_command_line_sends_nothing(server, jobctl, arguments, says):
    run = jobctl("submit", "flights", *arguments)

    assert run.code == ExitCode.USAGE
    assert says in run.err
    assert server.requests == []


def test_a_parameter_file_that_is_no_object_is_refused(jobctl, tmp_path):
    (tmp_path / "p.json").write_text("[1]")
    assert "JSON object" in jobctl("submit", "f", "--params-file", tmp_path / "p.json").err

    (tmp_path / "p.json").write_bytes(b'{"a": "\xff"}')
    assert jobctl("submit", "f", "--params-file", tmp_path / "p.json").code == ExitCode.USAGE


def test_url_and_key_are_asked_for_by_name(jobctl, monkeypatch):
    monkeypatch.delenv("JOBS_API_KEY")

    run = jobctl("list")

    assert run.code == ExitCode.USAGE
    assert "JOBS_API_KEY" in run.err


# Looking


def test_list_in_a_pipe_is_a_line_a_job_with_tabs_between_its_facts(server, jobctl, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    server.on("GET", "/prod/jobs", Reply(body={"items": [RUNNING, DONE], "next_cursor": None}))

    run = jobctl("list")

    head, first, second = (line.split("\t") for line in run.out.splitlines())
    assert len(head) == len(first) == len(second)
    assert first[0] == second[0] == JOB["id"]
    assert "running" in first
    assert any("1,500" in cell for cell in first)
    assert "succeeded" in second


def test_list_stops_at_its_limit_over_pages(server, jobctl):
    server.on(
        "GET",
        "/prod/jobs",
        Reply(body={"items": [JOB] * 2, "next_cursor": "c1"}),
        Reply(body={"items": [JOB] * 2, "next_cursor": "c2"}),
    )

    run = jobctl(
        *("list", "--limit", 3, "--status", "queued", "--template", "flights", "--json"),
        *("--created-after", "2026-01-01T00:00:00Z", "--created-before", "2027-01-01T00:00:00Z"),
    )

    assert len(json.loads(run.out)) == 3
    assert server.requests[0].query == {
        "limit": "3",
        "status": "queued",
        "template_name": "flights",
        "created_after": "2026-01-01T00:00:00+00:00",
        "created_before": "2027-01-01T00:00:00+00:00",
    }


def test_an_empty_list_says_so_beside_stdout(server, jobctl):
    server.on("GET", "/prod/jobs", Reply(body={"items": [], "next_cursor": None}))

    run = jobctl("list")

    assert (run.code, run.out) == (ExitCode.DONE, "")
    assert "None." in run.err


def test_show_says_what_is_known(server, jobctl):
    server.on("GET", PATH, Reply(body=RUNNING), Reply(body=DONE), Reply(body=FAILED))

    running, done, failed = (jobctl("show", JOB["id"]).out for _ in range(3))

    assert "1,500 rows, 9.0 kB, 40 %" in running
    assert f"2 rows, {len(CONTENT)} bytes, csv" in done
    assert "2026-01-09 03:04:05Z" in done
    assert "Too many rows (too_large)" in failed


def test_show_as_json_keeps_fields_of_a_later_version(server, jobctl):
    server.on("GET", PATH, Reply(body=JOB | {"priority": 5}))

    assert json.loads(jobctl("show", JOB["id"], "--json").out)["priority"] == 5


def test_text_of_others_cannot_steer_the_terminal(server, jobctl):
    evil = JOB | {"template_name": "\x1b]0;owned\x07[red]x[/red]", "metadata": {"a": "\x1b[2J"}}
    server.on("GET", PATH, Reply(body=evil))

    run = jobctl("show", JOB["id"])

    assert "\x1b" not in run.out
    assert "[red]x[/red]" in run.out


def test_cancel_tells_done_from_under_way(server, jobctl):
    server.on(
        "POST",
        f"{PATH}/cancel",
        Reply(status=202, body=JOB | {"status": "cancelled"}),
        Reply(body=RUNNING),
    )

    assert "is cancelled" in jobctl("cancel", JOB["id"]).out
    assert "is being cancelled (now: running)" in jobctl("cancel", JOB["id"]).out
    assert json.loads(jobctl("cancel", JOB["id"], "--json").out)["status"] == "running"


def test_templates_are_listed_and_shown_with_their_parameters(server, jobctl):
    template = {
        "name": "flights",
        "version": "2",
        "title": "All flights",
        "description": "Every flight of 2013.",
        "parameters": {
            "type": "object",
            "required": ["carrier"],
            "properties": {
                "carrier": {"type": "string", "description": "Two letters"},
                "origin": {
                    "anyOf": [{"type": "array", "items": {"type": "string"}}, {"type": "null"}]
                },
                "since": {"type": "string", "format": "date", "default": "2013-01-01"},
                "kind": {"enum": ["a", "b"]},
                "size": {"$ref": "#/$defs/Size"},
                "any": {},
            },
        },
        "columns": [{"name": "dep_delay", "type": "integer"}],
    }
    bare = {"name": "bare", "version": "1", "title": "No parameters"}
    server.on("GET", "/prod/templates", Reply(body={"items": [template, bare]}))
    server.on("GET", "/prod/templates/flights", Reply(body=template))
    server.on("GET", "/prod/templates/bare", Reply(body=bare))

    assert "All flights" in jobctl("templates").out
    names = [one["name"] for one in json.loads(jobctl("templates", "--json").out)]
    assert names == ["flights", "bare"]
    shown = jobctl("templates", "flights").out
    for expected in (
        "Two letters",
        "list of string",
        "date",
        "2013-01-01",
        "a | b",
        "Size",
        "any",
        "Every flight of 2013.",
        "dep_delay",
    ):
        assert expected in shown
    assert "takes no parameters" in jobctl("templates", "bare").out
    assert json.loads(jobctl("templates", "flights", "--json").out)["version"] == "2"


# Waiting and downloading


def test_wait_ends_with_the_job(server, jobctl, result):
    run = jobctl("wait", JOB["id"])

    assert run.code == ExitCode.DONE
    assert "succeeded" in run.out
    assert len(server.requests) == 3


@pytest.mark.parametrize("status", ["failed", "cancelled"])
def test_wait_for_a_job_without_a_result_fails(server, jobctl, status):
    server.on("GET", PATH, Reply(body=FAILED | {"status": status}))

    run = jobctl("wait", JOB["id"])

    assert run.code == ExitCode.JOB_FAILED
    assert status in run.out


def test_wait_ends_at_its_timeout(server, jobctl):
    server.on("GET", PATH, Reply(body=RUNNING))

    run = jobctl("wait", JOB["id"], "--timeout", 5)

    assert run.code == ExitCode.DEADLINE
    assert "still running after 5 s; it goes on" in run.err


def test_ctrl_c_leaves_the_job_running_and_says_how_to_return(server, jobctl):
    def interrupt(seen):
        os.kill(os.getpid(), signal.SIGINT)
        return Reply(body=RUNNING)

    server.on("GET", PATH, interrupt)

    run = jobctl("wait", JOB["id"])

    assert run.code == ExitCode.INTERRUPTED
    assert f"jobctl wait {JOB['id']}" in run.err


def test_download_writes_into_the_present_folder(jobctl, result, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    run = jobctl("download", JOB["id"])

    assert run.code == ExitCode.DONE
    assert (tmp_path / "flights.csv").read_bytes() == CONTENT
    assert RESULT["sha256"] in run.out


def test_download_says_how_much_was_there_already(jobctl, result, tmp_path):
    (tmp_path / "out.csv.part").write_bytes(CONTENT[:10])

    run = jobctl("download", JOB["id"], "-o", tmp_path / "out.csv")
    assert "10 bytes of it from before" in run.out

    run = jobctl("download", JOB["id"], "-o", tmp_path / "out.csv", "--json")
    assert json.loads(run.out) == {
        "path": str(tmp_path / "out.csv"),
        "bytes": len(CONTENT),
        "sha256": RESULT["sha256"],
        "resumed_from": 0,
    }


def test_download_saves_the_manifest_that_verify_takes(server, jobctl, result, tmp_path):
    manifest = RESULT | {"rows": 2, "parts": [], "manifest_version": 1, "job_id": JOB["id"]}
    manifest["rows"] = max(0, CONTENT.count(b"\n") - 1)
    ticket = {"url": f"{server.url}/object", "filename": "flights.csv", **RESULT}
    ticket["manifest_url"] = f"{server.url}/manifest"
    server.on("GET", f"{PATH}/download", Reply(body=ticket))
    server.on("GET", "/manifest", Reply(body=manifest))

    run = jobctl("download", JOB["id"], "-o", tmp_path, "--manifest")

    file, saved = tmp_path / "flights.csv", tmp_path / "flights.csv.manifest.json"
    assert run.code == ExitCode.DONE
    assert str(saved) in run.out
    assert jobctl("verify", file, saved).code == ExitCode.DONE
    run = jobctl("download", JOB["id"], "-o", tmp_path, "--manifest", "--json")
    assert json.loads(run.out)["manifest"] == str(saved)


def test_download_of_wrong_bytes_leaves_nothing(server, jobctl, result, tmp_path):
    server.on("GET", "/object", stored(CONTENT[:-1] + b"X"))

    run = jobctl("download", JOB["id"], "-o", tmp_path / "out.csv")

    assert run.code == ExitCode.MISMATCH
    assert list(tmp_path.iterdir()) == []


def test_download_into_a_folder_that_is_not_there_says_so(jobctl, result, tmp_path):
    run = jobctl("download", JOB["id"], "-o", tmp_path / "no" / "out.csv")

    assert run.code == ExitCode.FAILED
    assert "No such file or directory" in run.err
    assert "Traceback" not in run.err


def test_a_terminal_sees_progress_on_stderr(jobctl, result, tmp_path, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")

    run = jobctl("submit", "flights", "-o", tmp_path / "out.csv", "--json")

    assert json.loads(run.out)["status"] == "succeeded"
    assert "downloading" in run.err


# Exit codes


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        (problem(400, "bad_request"), ExitCode.FAILED),
        (problem(401, "unauthorized"), ExitCode.NOT_ALLOWED),
        (problem(403, "forbidden"), ExitCode.NOT_ALLOWED),
        (problem(404, "job_not_found"), ExitCode.NOT_FOUND),
        (problem(409, "job_final"), ExitCode.FAILED),
        (problem(410, "result_expired"), ExitCode.NOT_FOUND),
        (problem(429, "too_many_requests"), ExitCode.UNREACHABLE),
        (problem(500, "internal_error"), ExitCode.UNREACHABLE),
        (Reply(drop=True), ExitCode.UNREACHABLE),
        (Reply(body=b"<html>"), ExitCode.FAILED),
    ],
)
def test_scripts_can_tell_what_went_wrong(server, jobctl, reply, code):
    server.on("GET", PATH, reply)

    run = jobctl("show", JOB["id"])

    assert run.code == code
    assert run.err.startswith("Error: ")
    assert run.out == ""


def test_an_error_of_the_platform_names_the_request(server, jobctl):
    server.on("GET", PATH, problem(500, "internal_error"))

    assert "Tell the operator this request id: request-1" in jobctl("show", JOB["id"]).err


def test_a_wrong_key_says_where_the_key_comes_from(server, jobctl):
    server.on("GET", PATH, problem(403, "forbidden"))

    assert "JOBS_API_KEY" in jobctl("show", JOB["id"]).err


def test_an_empty_id_is_a_wrong_command_line(server, jobctl):
    for command in ("show", "wait", "download", "cancel"):
        assert jobctl(command, "").code == ExitCode.USAGE
    assert server.requests == []


# Verify


def manifest(**changes):
    return {"format": "csv", "compression": "none", "parts": []} | RESULT | changes


def test_verify_needs_neither_url_nor_key(jobctl, tmp_path, monkeypatch):
    monkeypatch.delenv("JOBS_API_URL")
    monkeypatch.delenv("JOBS_API_KEY")
    (tmp_path / "f.csv").write_bytes(CONTENT)
    (tmp_path / "m.json").write_text(json.dumps(manifest()))

    run = jobctl("verify", tmp_path / "f.csv", tmp_path / "m.json")
    assert (run.code, "2 rows, 16 bytes, SHA-256 equal" in run.out) == (ExitCode.DONE, True)

    run = jobctl("verify", tmp_path / "f.csv", tmp_path / "m.json", "--json")
    assert json.loads(run.out)["rows"] == 2


def test_verify_of_a_format_it_cannot_count(jobctl, tmp_path):
    (tmp_path / "f").write_bytes(CONTENT)
    (tmp_path / "m.json").write_text(json.dumps(manifest(format="parquet")))

    assert "rows not counted" in jobctl("verify", tmp_path / "f", tmp_path / "m.json").out


def test_verify_says_everything_that_differs(jobctl, tmp_path):
    (tmp_path / "f.csv").write_bytes(CONTENT + b"3,c\n")
    (tmp_path / "m.json").write_text(json.dumps(manifest()))

    run = jobctl("verify", tmp_path / "f.csv", tmp_path / "m.json")

    assert run.code == ExitCode.MISMATCH
    assert "20 bytes, not 16" in run.err
    assert "3 rows, not 2" in run.err


def test_verify_of_files_that_are_not_there_or_no_manifest(jobctl, tmp_path):
    (tmp_path / "f.csv").write_bytes(CONTENT)
    (tmp_path / "m.json").write_text("{}")

    assert jobctl("verify", tmp_path / "f.csv", tmp_path / "nothing").code == ExitCode.FAILED
    assert jobctl("verify", tmp_path / "nothing", tmp_path / "m.json").code == ExitCode.MISMATCH
    run = jobctl("verify", tmp_path / "f.csv", tmp_path / "m.json")
    assert (run.code, "is not a manifest" in run.err) == (ExitCode.MISMATCH, True)


# The process


def test_the_module_runs_as_the_command_does():
    run = subprocess.run(
        [sys.executable, "-m", "jobclient", "--help"], capture_output=True, text=True, check=True
    )

    assert "submit" in run.stdout


def test_without_typer_it_says_what_to_install():
    script = """
import sys
sys.modules["typer"] = None
from jobclient import cli
cli.main(["list"])
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)

    assert run.returncode == 1
    assert "pip install" in run.stderr
    assert "Traceback" not in run.stderr


def test_customers_commands_do_not_load_boto3():
    script = "import sys; from jobclient import commands; print('boto3' in sys.modules)"

    assert subprocess.check_output([sys.executable, "-c", script], text=True) == "False\n"

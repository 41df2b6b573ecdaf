"""Faults happen where and how the script says, and never against AWS itself."""

import http.server
import json
import pathlib
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import boto3
import botocore.config
import botocore.exceptions
import pytest

from jobplatform import faults
from jobplatform.settings import FaultSettings


@pytest.fixture(autouse=True)
def _off_afterwards() -> Iterator[None]:
    yield
    faults.switch_off()


class _Bucket(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    seen: list[tuple[str, bytes]]

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.seen.append((self.path, body))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.send_header("ETag", '"etag"')
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def s3() -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    """An S3 that takes every object: its address, and what it was sent."""
    handler = type("Handler", (_Bucket,), {"seen": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", handler.seen
        finally:
            server.shutdown()
            thread.join()


def _script(folder: pathlib.Path, *rules: dict[str, Any], seed: int = 1) -> pathlib.Path:
    file = folder / "faults.json"
    file.write_text(json.dumps({"seed": seed, "rules": rules}))
    return file


def _on(file: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    faults.switch_on(FaultSettings(file=str(file)), function="tests")


def _client(url: str) -> Any:
    config = botocore.config.Config(
        retries={"total_max_attempts": 3, "mode": "standard"},
        s3={"addressing_style": "path"},
        request_checksum_calculation="when_required",
    )
    client = boto3.client("s3", endpoint_url=url, config=config)
    faults.watch(client)
    return client


def test_nothing_happens_without_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    faults.switch_on(FaultSettings(), function="tests")

    faults.point("submit.after_commit")

    assert faults._injector is None


def test_aws_itself_is_refused(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    file = _script(tmp_path, {"at": "*", "action": "raise", "probability": 1})

    faults.switch_on(FaultSettings(file=str(file)), function="tests")

    faults.point("submit.after_commit")
    assert faults._injector is None


def test_a_rule_concerns_the_points_of_its_pattern(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _on(_script(tmp_path, {"at": "submit.*", "action": "raise", "probability": 1}), monkeypatch)

    faults.point("publish.before")
    with pytest.raises(faults.InjectedFault):
        faults.point("submit.after_commit")

    (line,) = (tmp_path / "faults.json.log").read_text().splitlines()
    assert json.loads(line)["point"] == "submit.after_commit"
    assert json.loads(line)["function"] == "tests"


def test_the_file_can_be_changed_and_removed_while_functions_run(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = _script(tmp_path)
    _on(file, monkeypatch)
    faults.point("claim.after")

    changed = _script(tmp_path / "..", {"at": "*", "action": "raise", "probability": 1})
    changed.replace(file)
    with pytest.raises(faults.InjectedFault):
        faults.point("claim.after")

    file.unlink()
    faults.point("claim.after")


def test_a_seed_decides_the_same_in_every_run() -> None:
    def chosen(seed: int) -> list[int]:
        rules = (faults.Rule(at="*", action="kill", probability=0.2),)
        script = faults.Script(seed=seed, rules=rules)
        return [visit for visit in range(1, 1001) if script.choose("claim.after", visit)]

    assert chosen(1) == chosen(1) != chosen(2)
    assert 150 < len(chosen(1)) < 250


def test_probabilities_of_several_rules_add_up() -> None:
    script = faults.Script(
        rules=(
            faults.Rule(at="s3.*", action="error", probability=0.5),
            faults.Rule(at="*", action="twice", probability=0.5),
        )
    )

    actions = [rule.action for n in range(200) if (rule := script.choose("s3.PutObject", n))]

    assert len(actions) == 200
    assert set(actions) == {"error", "twice"}


_CHILD = """
import sys
from jobplatform import faults
from jobplatform.settings import FaultSettings
faults.switch_on(FaultSettings(file=sys.argv[1]), function="child")
faults.point("claim.after")
print("alive")
"""


@pytest.mark.parametrize(
    ("action", "code", "output"),
    [("kill", -9, ""), ("pause", 0, "alive\n"), ("delay", 0, "alive\n")],
)
def test_a_process_is_killed_paused_or_delayed(
    tmp_path: pathlib.Path, action: str, code: int, output: str
) -> None:
    rule = {"at": "claim.after", "action": action, "probability": 1, "seconds": 0.05}

    done = subprocess.run(
        [sys.executable, "-c", _CHILD, _script(tmp_path, rule)],
        capture_output=True,
        text=True,
        timeout=30,
        env={"AWS_ENDPOINT_URL": "http://127.0.0.1:1", "AWS_DEFAULT_REGION": "eu-central-1"},
    )

    assert (done.returncode, done.stdout) == (code, output), done.stderr


@pytest.mark.parametrize(
    ("action", "times"), [("error", 0), ("unreachable", 0), ("lost_answer", 3)]
)
def test_a_service_fails_or_its_answer_is_lost(
    s3: tuple[str, list[Any]],
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    action: str,
    times: int,
) -> None:
    url, seen = s3
    _on(_script(tmp_path, {"at": "s3.PutObject", "action": action, "probability": 1}), monkeypatch)
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0)

    with pytest.raises((botocore.exceptions.ClientError, botocore.exceptions.BotoCoreError)):
        _client(url).put_object(Bucket="b", Key="k", Body=b"content")

    assert [body for _, body in seen] == [b"content"] * times


def test_a_service_gets_a_request_twice(
    s3: tuple[str, list[Any]], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, seen = s3
    _on(_script(tmp_path, {"at": "s3.*", "action": "twice", "probability": 1}), monkeypatch)

    answer = _client(url).put_object(Bucket="b", Key="k", Body=b"content")

    assert answer["ETag"] == '"etag"'
    assert seen == [("/b/k", b"content")] * 2

import json
import urllib.request
from pathlib import Path

import boto3
import psutil
import pytest

from infra.local import paths
from infra.local.errors import LocalError
from infra.local.ministack import MiniStack
from tests.local.conftest import eventually, processes_of
from tests.local.functions import zipped

_HANDLER = "import os\ndef handler(event, context): return sorted(os.environ)"


def test_a_function_sees_nothing_of_our_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORGOTTEN_SETTING", "would hide a mistake")
    emulator = MiniStack(tmp_path)
    running = emulator.launch()
    try:
        emulator.wait()
        lambda_ = boto3.client(
            "lambda",
            endpoint_url=running.endpoint_url,
            region_name="us-east-1",
            aws_access_key_id="test",
            aws_secret_access_key="test",
        )
        lambda_.create_function(
            FunctionName="look",
            Runtime="python3.12",
            Role="arn:aws:iam::000000000000:role/any",
            Handler="index.handler",
            Code={"ZipFile": zipped({"index.py": _HANDLER})},
        )

        names = json.load(lambda_.invoke(FunctionName="look")["Payload"])

        assert "AWS_REGION" in names
        assert "FORGOTTEN_SETTING" not in names
        assert len(processes_of(tmp_path)) == 2  # the emulator and the function that waits
    finally:
        emulator.stop()

    assert eventually(lambda: processes_of(tmp_path) == [])
    assert not running.process.is_alive()


def test_it_listens_on_the_loopback_address_alone(tmp_path: Path) -> None:
    emulator = MiniStack(tmp_path)
    running = emulator.launch()
    try:
        emulator.wait()
        with urllib.request.urlopen(f"{running.endpoint_url}/_ministack/health") as answer:
            assert answer.status == 200
        listening = {
            connection.laddr.ip
            for connection in psutil.Process(running.process.pid).net_connections()
            if connection.status == psutil.CONN_LISTEN
        }
    finally:
        emulator.stop()

    assert listening == {"127.0.0.1"}


def test_a_missing_environment_is_told_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "EMULATOR_PYTHON", tmp_path / "nowhere")

    with pytest.raises(LocalError, match="make setup"):
        MiniStack(tmp_path).launch()

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from infra.local import paths
from infra.local.errors import LocalError
from infra.local.up import LocalTarget
from tests.local.conftest import eventually, processes_of


def _demo(state_dir: Path, **environ: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "infra.local", "demo"],
        cwd=paths.ROOT,
        env={**os.environ, "JOBPLATFORM_LOCAL_DIR": str(state_dir), **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("moment", ["state.json", "ministack.log", "synth.log"])
def test_interrupted_on_the_way_up_nothing_is_left(
    number: signal.Signals, moment: str, tmp_path: Path
) -> None:
    state_dir = tmp_path / "state"
    with _demo(state_dir) as demo:
        assert eventually((state_dir / moment).exists)

        demo.send_signal(number)
        output, _ = demo.communicate(timeout=60)

    assert demo.returncode == 130, output
    assert "Interrupted" in output
    assert eventually(lambda: processes_of(tmp_path) == [])
    assert not state_dir.exists()


def test_a_failure_on_the_way_up_is_told_in_words_and_leaves_nothing(tmp_path: Path) -> None:
    state_dir = tmp_path / "state"
    nobody_there = "postgresql://me:secret@127.0.0.1:1/mine"

    with _demo(state_dir, JOBPLATFORM_DATABASE_URL=nobody_there) as demo:
        output, _ = demo.communicate(timeout=60)

    assert demo.returncode == 1
    assert "does not accept a connection" in output
    assert "Traceback" not in output
    assert "secret" not in output
    assert eventually(lambda: processes_of(tmp_path) == [])
    assert not state_dir.exists()


def test_a_folder_with_other_things_in_it_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")

    with pytest.raises(LocalError, match="not empty"):
        LocalTarget(tmp_path).start()
    LocalTarget(tmp_path).stop()

    assert (tmp_path / "thesis.txt").read_text() == "precious"


def test_what_a_killed_run_left_is_stopped_by_down(tmp_path: Path) -> None:
    state_dir = tmp_path / "state"
    with _demo(state_dir) as demo:
        assert eventually((state_dir / "synth.process").exists)
        demo.kill()
        demo.communicate()
    servers = json.loads((state_dir / "state.json").read_text())
    for name in ("ministack", "postgres"):
        assert psutil.pid_exists(servers[name]["process"]["pid"])

    LocalTarget(state_dir).stop()

    assert eventually(lambda: processes_of(tmp_path) == [])
    assert not state_dir.exists()


def test_two_commands_do_not_work_on_one_folder_at_once(tmp_path: Path) -> None:
    target = LocalTarget(tmp_path / "state")
    with target._alone(), pytest.raises(LocalError, match="Another command"):
        LocalTarget(tmp_path / "state").start()

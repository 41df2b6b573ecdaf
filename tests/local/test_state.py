import json
import os
import stat
from pathlib import Path

import psutil

from infra.local.ministack import RunningMiniStack
from infra.local.postgres import RunningPostgres
from infra.local.processes import ProcessRef
from infra.local.state import State, status

_MINE = ProcessRef.of(os.getpid())
_BEFORE_A_REBOOT = ProcessRef(pid=_MINE.pid, started=_MINE.started - 3600)


def _state(state_dir: Path, process: ProcessRef) -> State:
    state_dir.mkdir()
    (state_dir / "home").mkdir()
    return State(
        state_dir=state_dir,
        ministack=RunningMiniStack(process=process, port=4566),
        postgres=RunningPostgres(
            process=process, port=5432, password="secret", home=str(state_dir / "home")
        ),
        database_url="postgresql://127.0.0.1:5432/platform",
        outputs={"ApiUrl": "http://127.0.0.1:4566/api"},
        keys={"basic": "b", "pro": "p"},
    )


def test_what_was_saved_is_loaded_again_and_readable_by_its_owner_alone(tmp_path: Path) -> None:
    state = _state(tmp_path / "state", _MINE)
    state.save()

    assert State.load(tmp_path / "state") == state
    assert stat.S_IMODE((tmp_path / "state" / "state.json").stat().st_mode) == 0o600


def test_status_is_one_json_object_with_all_that_a_script_needs(tmp_path: Path) -> None:
    _state(tmp_path / "state", _MINE).save()

    found = json.loads(json.dumps(status(tmp_path / "state")))

    assert found["running"] is True
    assert found["api_url"] == "http://127.0.0.1:4566/api"
    assert found["aws_endpoint_url"] == "http://127.0.0.1:4566"
    assert found["keys"] == {"basic": "b", "pro": "p"}
    assert found["pids"] == {"postgres": os.getpid(), "ministack": os.getpid()}


def test_status_has_the_same_fields_when_nothing_runs(tmp_path: Path) -> None:
    _state(tmp_path / "state", _MINE).save()

    nothing = status(tmp_path / "elsewhere")

    assert nothing["running"] is False
    assert nothing.keys() == status(tmp_path / "state").keys()


def test_a_state_from_before_a_reboot_does_not_count_as_running(tmp_path: Path) -> None:
    _state(tmp_path / "state", _BEFORE_A_REBOOT).save()

    assert status(tmp_path / "state")["running"] is False


def test_clearing_it_away_ends_nobody_who_got_one_of_its_numbers(tmp_path: Path) -> None:
    _state(tmp_path / "state", _BEFORE_A_REBOOT).stop()

    assert psutil.Process(_MINE.pid).is_running()
    assert not (tmp_path / "state").exists()

import json
import re
import sys
from pathlib import Path

import pytest

from infra.local import install

_LAYER_LOCK = install.ROOT / "layers" / "dependencies" / "requirements.txt"
_LOCKS = [install.DEV_LOCK, install.EMULATOR_LOCK, install.SAMPLE_DATA_LOCK, _LAYER_LOCK]


def _pins(lock: Path) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9._-]+)==([^ ;\\]+)", lock.read_text(), re.MULTILINE))


@pytest.mark.parametrize("lock", _LOCKS, ids=lambda lock: str(lock.relative_to(install.ROOT)))
def test_a_lock_pins_by_hash_and_names_no_index_and_no_folder(lock: Path) -> None:
    text = lock.read_text()

    assert not re.search(r"https?://|file:|^-|--index|--find-links|/home/|/root/", text, re.M)
    for entry in re.split(r"\n(?=[a-z0-9])", text.partition("make lock\n")[2]):
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", entry), entry.splitlines()[0]


def test_the_functions_run_what_the_tests_ran() -> None:
    tested = _pins(install.DEV_LOCK)

    assert {name: tested.get(name) for name in _pins(_LAYER_LOCK)} == _pins(_LAYER_LOCK)


def test_set_up_twice_does_nothing_the_second_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs: list[str] = []
    monkeypatch.setattr(install, "STAMP", tmp_path / "setup.json")
    monkeypatch.setattr(install, "_install", lambda: runs.append("installed"))

    assert install.main() == 0
    assert capsys.readouterr().err != ""
    assert install.main() == 0

    assert runs == ["installed"]
    assert capsys.readouterr() == ("", "")


def test_a_changed_lock_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = install._fingerprint()
    changed = tmp_path / "requirements-dev.txt"
    changed.write_text(install.DEV_LOCK.read_text() + "one-more==1.0\n")
    monkeypatch.setattr(install, "DEV_LOCK", changed)

    assert install._fingerprint() != before


def test_uv_itself_comes_from_the_lock() -> None:
    entry = install._entry_of_lock("uv")

    assert entry.startswith("uv==")
    assert entry.count("--hash=sha256:") > 5
    assert "\nuvicorn" not in entry


def test_uv_asks_the_index_that_pip_is_configured_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configured = tmp_path / "index.txt"
    configured.write_text("https://packages.example.org/simple")
    monkeypatch.setattr(install, "INDEX_OF_PIP", configured)
    monkeypatch.delenv("UV_DEFAULT_INDEX", raising=False)

    assert install.uv_environ()["UV_DEFAULT_INDEX"] == "https://packages.example.org/simple"

    monkeypatch.setenv("UV_DEFAULT_INDEX", "https://other.example.org/simple")
    assert install.uv_environ()["UV_DEFAULT_INDEX"] == "https://other.example.org/simple"


def test_the_index_is_read_from_pips_own_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "https://packages.example.org/simple")

    assert install._index_of_pip(Path(sys.executable)) == "https://packages.example.org/simple"


def test_an_old_python_is_told_which_one_is_needed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 9, 6, "final", 0))

    assert install.main() == 1
    assert "Python 3.11 or newer is needed" in capsys.readouterr().err


def test_the_stamp_is_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "setup.json"
    broken.write_text("{")
    monkeypatch.setattr(install, "STAMP", broken)

    assert install._read_stamp() is None
    broken.write_text(json.dumps({"folder": "moved"}))
    assert install._read_stamp() == {"folder": "moved"}

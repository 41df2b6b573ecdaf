"""`make setup`: the virtual environments and the sample data, from hash locks.

Runs before anything is installed, so it imports the standard library alone. uv installs; pip
stands in where uv cannot.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
VENV = ROOT / ".venv"
EMULATOR = ROOT / ".local" / "emulator"
SAMPLE_DATA = ROOT / ".local" / "sample-data"
STAMP = VENV / "setup.json"
INDEX_OF_PIP = VENV / "index.txt"

DEV_LOCK = ROOT / "requirements-dev.txt"
EMULATOR_LOCK = ROOT / "infra" / "local" / "requirements.txt"
SAMPLE_DATA_LOCK = ROOT / "infra" / "local" / "sample-data.txt"

BIN = "Scripts" if os.name == "nt" else "bin"


def main() -> int:
    if sys.version_info < (3, 11):  # noqa: UP036
        found = ".".join(map(str, sys.version_info[:3]))
        return _fail(
            f"Python 3.11 or newer is needed, and {sys.executable} is {found}. "
            "Name another one: make setup PYTHON=python3.12"
        )
    wanted = _fingerprint()
    if _read_stamp() == wanted:
        return 0
    started = time.monotonic()
    try:
        _install()
    except subprocess.CalledProcessError as error:
        return _fail(
            f"`{' '.join(map(str, error.cmd))}` ended with {error.returncode}; see above. Packages "
            "come from the index that pip is configured with (by default PyPI): is it reachable?"
        )
    STAMP.write_text(json.dumps(wanted, indent=2))
    _say(f"Set up in {time.monotonic() - started:.0f} s.")
    return 0


def _install() -> None:
    python = VENV / BIN / "python"
    _say(
        f"Setting up with Python {sys.version.split()[0]} (once; a few minutes on a slow line) ..."
    )
    _make_environment(VENV, with_pip=True)
    _make_environment(EMULATOR, with_pip=False)
    STAMP.unlink(missing_ok=True)
    uv_lock = VENV / "uv.txt"
    uv_lock.write_text(_entry_of_lock("uv"))
    _pip(python, "install", "--require-hashes", "-r", uv_lock)

    uv = Uv(VENV / BIN / "uv", python)
    _say("  development tools and the CDK")
    uv.sync(DEV_LOCK, python)
    _say("  the AWS emulator")
    uv.sync(EMULATOR_LOCK, EMULATOR / BIN / "python")
    _say("  the project and the sample data")
    # The build backends are in the lock too, so nothing is built with an unpinned one.
    without_fetching = ["--no-deps", "--no-build-isolation"]
    uv.install(*without_fetching, "--editable", ROOT)
    shutil.rmtree(SAMPLE_DATA, ignore_errors=True)
    uv.install(
        *without_fetching, "--require-hashes", "--target", SAMPLE_DATA, "-r", SAMPLE_DATA_LOCK
    )


def uv_environ() -> "dict[str, str]":
    """The environment in which uv trusts and asks whom pip does; by itself it reads no pip.conf."""
    environ = {"UV_SYSTEM_CERTS": "true", **os.environ}
    if INDEX_OF_PIP.exists():
        environ.setdefault("UV_DEFAULT_INDEX", INDEX_OF_PIP.read_text())
    return environ


class Uv:
    """Installs by uv from the index that pip would use, and by pip itself once uv has failed."""

    def __init__(self, path: Path, python: Path) -> None:
        self._path = path
        self._python = python
        self._works = True
        index = _index_of_pip(python)
        INDEX_OF_PIP.unlink(missing_ok=True)
        if index is not None:
            INDEX_OF_PIP.touch(mode=0o600)
            INDEX_OF_PIP.write_text(index)
        self._environ = uv_environ()

    def sync(self, lock: Path, python: Path) -> None:
        if not self._try("sync", "--python", python, "--require-hashes", lock):
            _pip(
                self._python,
                *("--python", python, "install", "--no-deps", "--require-hashes", "-r", lock),
            )

    def install(self, *arguments: object) -> None:
        if not self._try("install", "--python", self._python, *arguments):
            _pip(self._python, "install", *arguments)

    def _try(self, command: str, *arguments: object) -> bool:
        if self._works:
            line = [self._path, "pip", command, "--quiet", *arguments]
            done = subprocess.run(list(map(str, line)), env=self._environ, cwd=ROOT, check=False)
            self._works = done.returncode == 0
            if not self._works:
                _say("  uv could not; trying the same with pip (slower)")
        return self._works


def _pip(python: Path, *arguments: object) -> None:
    line = [python, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments]
    subprocess.run(list(map(str, line)), cwd=ROOT, check=True)


def _index_of_pip(python: Path) -> "str | None":
    """The index address that a person's pip configuration names, if any; later levels win."""
    shown = subprocess.run(
        [str(python), "-m", "pip", "--disable-pip-version-check", "config", "list"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    found = re.findall(r"^[^=]*\.index-url='(.*)'$", shown, re.MULTILINE)
    return found[-1] if found else None


def _make_environment(folder: Path, with_pip: bool) -> None:
    """Makes it anew unless it is of this interpreter and this folder."""
    made_for = folder / "made-for.txt"
    wanted = f"{_interpreter()}\n{folder}\n"
    if made_for.exists() and made_for.read_text() == wanted:
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(exist_ok=True)
    try:
        venv.create(folder, with_pip=with_pip, symlinks=os.name != "nt")
    except subprocess.CalledProcessError as error:
        raise SystemExit(
            f"setup: {sys.executable} cannot make virtual environments (on Debian and Ubuntu: "
            "apt-get install python3-venv). It said: "
            f"{(error.output or b'').decode(errors='replace')}"
        ) from error
    made_for.write_text(wanted)


def _interpreter() -> str:
    return f"{sys.version} in {sys.base_prefix}"


def _entry_of_lock(name: str) -> str:
    found = re.search(rf"^{name}==.*\n(?:[ \t].*\n)*", DEV_LOCK.read_text(), re.MULTILINE)
    if found is None:
        raise SystemExit(f"setup: {DEV_LOCK.name} does not name {name}; run `make lock`.")
    return found.group()


def _fingerprint() -> "dict[str, str]":
    """What the environments depend on; scripts and links in them hold the folder's path."""
    files = [DEV_LOCK, EMULATOR_LOCK, SAMPLE_DATA_LOCK, ROOT / "pyproject.toml", Path(__file__)]
    return {
        "files": hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest(),
        "python": _interpreter(),
        "folder": str(ROOT),
    }


def _read_stamp() -> "object":
    if not (VENV / BIN / "python").exists() or not (EMULATOR / BIN / "python").exists():
        return None
    try:
        return json.loads(STAMP.read_text())
    except (OSError, ValueError):
        return None


def _say(text: str) -> None:
    # stderr, so that `make -s status` prints its JSON alone on stdout.
    print(text, file=sys.stderr, flush=True)


def _fail(text: str) -> int:
    _say(f"setup: {text}")
    return 1


if __name__ == "__main__":
    sys.exit(main())

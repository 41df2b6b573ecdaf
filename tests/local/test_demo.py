import os
import subprocess
import sys
from pathlib import Path

import pytest

from infra.local import paths
from tests.helpers import programs
from tests.local.conftest import eventually, processes_of


@pytest.mark.e2e
@pytest.mark.timeout(300)
def test_the_demo_exports_all_flights_and_leaves_nothing(tmp_path: Path) -> None:
    done = programs.run(
        [sys.executable, "-m", "infra.local", "demo"],
        cwd=paths.ROOT,
        env={**os.environ, "JOBPLATFORM_LOCAL_DIR": str(tmp_path / "state"), "COLUMNS": "100"},
        stdin=subprocess.DEVNULL,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "336776 rows, SHA-256 equal" in done.stdout
    assert "→ 403" in done.stdout
    assert "Idempotent-Replayed: true" in done.stdout
    assert eventually(lambda: processes_of(tmp_path) == [])
    assert not (tmp_path / "state").exists()

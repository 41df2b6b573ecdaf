"""Swagger UI in a real browser, where there is one."""

import shutil
import subprocess
from pathlib import Path

import pytest

from infra.local.up import LocalTarget

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

_BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


@pytest.mark.skipif(_BROWSER is None, reason="no Chromium or Chrome on the PATH")
def test_the_page_shows_every_operation_and_asks_for_a_key(
    target: LocalTarget, tmp_path: Path
) -> None:
    done = subprocess.run(
        [
            str(_BROWSER),
            *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
            *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
            # The page has to come with everything it needs: any other host is refused.
            "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1 , EXCLUDE localhost",
            f"--user-data-dir={tmp_path}",
            "--virtual-time-budget=10000",
            "--dump-dom",
            f"{target.api_url}/docs",
        ],
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )

    for words in ("Submit a job", "List jobs", "Cancel a job", "Download a result", "Authorize"):
        assert words in done.stdout

"""Servers end with a test process that is killed."""

import signal
import subprocess
import sys
from pathlib import Path

from infra.local import paths
from infra.local.processes import ProcessRef
from tests.helpers import store

_CHILD = """
import sys
from pathlib import Path
from infra.local.postgres import LocalPostgres
from tests.helpers import orphans

with LocalPostgres(Path(sys.argv[1]), durable=False) as server:
    with orphans.stopped_with_us(server.running):
        print(server.running.process.pid, server.running.home, flush=True)
        sys.stdin.read()
"""


def test_a_server_of_a_killed_process_is_stopped_and_its_files_are_removed(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _CHILD, str(tmp_path)],
        cwd=paths.ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout is not None
        pid, home = child.stdout.readline().split(maxsplit=1)
        server = ProcessRef.of(int(pid))
        assert server.is_alive()
        child.send_signal(signal.SIGKILL)

    store.until(lambda: not server.is_alive(), what="the server is stopped")
    store.until(lambda: not Path(home.strip()).exists(), what="its files are gone")

"""Servers of a test process that is killed, or given up by pytest-xdist, end with it."""

import base64
import contextlib
import pickle
import subprocess
import sys
from collections.abc import Iterator

from infra.local import paths
from infra.local.ministack import RunningMiniStack
from infra.local.postgres import RunningPostgres


@contextlib.contextmanager
def stopped_with_us(*servers: RunningPostgres | RunningMiniStack) -> Iterator[None]:
    """A process waits for the end of this one; where the block ends first, it has nothing to do."""
    given = base64.b64encode(pickle.dumps(servers)).decode()
    with subprocess.Popen(
        [sys.executable, "-m", "tests.helpers.orphans", given],
        cwd=paths.ROOT,
        stdin=subprocess.PIPE,
        start_new_session=True,
    ) as watching:
        try:
            yield
        finally:
            watching.kill()


def _main() -> None:
    sys.stdin.read()
    for server in pickle.loads(base64.b64decode(sys.argv[1])):
        server.stop()


if __name__ == "__main__":
    _main()

"""Servers of a test process that is killed, or given up by pytest-xdist, end with it."""

import contextlib
import pickle
import subprocess
import sys
from collections.abc import Iterator

from infra.local import paths
from infra.local.postgres import RunningPostgres
from infra.local.state import State


@contextlib.contextmanager
def stopped_with_us(servers: RunningPostgres | State) -> Iterator[None]:
    """A process waits for the end of this one; where the block ends first, it has nothing to do."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.helpers.orphans"],
        cwd=paths.ROOT,
        stdin=subprocess.PIPE,
        start_new_session=True,
    ) as watching:
        assert watching.stdin is not None
        try:
            pickle.dump(servers, watching.stdin)
            watching.stdin.flush()
            yield
        finally:
            watching.kill()


def _main() -> None:
    servers = pickle.load(sys.stdin.buffer)
    sys.stdin.buffer.read()
    servers.stop()


if __name__ == "__main__":
    _main()

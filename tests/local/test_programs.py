"""A program that a test runs gets time to stop what it started."""

import signal
import sys
import threading
from pathlib import Path

import pytest

from tests.helpers import programs, store

_CODE = """
import pathlib, signal, sys, time

def end(number, frame):
    raise SystemExit(3)

signal.signal(signal.SIGTERM, end)
folder = pathlib.Path(sys.argv[1])
try:
    (folder / "started").touch()
    time.sleep(60)
finally:
    print("stopping", "it " * 100_000, flush=True)
    time.sleep(0.5)
    (folder / "stopped").touch()
"""


def test_an_interrupted_program_is_waited_for(tmp_path: Path) -> None:
    def interrupt() -> None:
        store.until((tmp_path / "started").exists)
        main = threading.main_thread().ident
        assert main is not None
        signal.pthread_kill(main, signal.SIGUSR1)

    def raised(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGUSR1, raised)
    try:
        threading.Thread(target=interrupt).start()
        with pytest.raises(KeyboardInterrupt):
            programs.run([sys.executable, "-c", _CODE, str(tmp_path)])
    finally:
        signal.signal(signal.SIGUSR1, before)

    assert (tmp_path / "stopped").exists()

"""Short waits and a look at what is left of an instance."""

import time
from collections.abc import Callable
from pathlib import Path

import psutil


def eventually(condition: Callable[[], bool], *, seconds: float = 20) -> bool:
    """True as soon as the condition holds; False when the time is over."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def processes_of(folder: Path) -> list[str]:
    """Command lines of the processes that belong to an instance: by argument, folder or setting."""
    found = []
    for process in psutil.process_iter():
        try:
            words = [*process.cmdline(), process.cwd(), *process.environ().values()]
        except psutil.Error:
            continue
        if process.status() != psutil.STATUS_ZOMBIE and any(str(folder) in word for word in words):
            found.append(" ".join(process.cmdline()))
    return found

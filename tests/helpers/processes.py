"""Many execution environments of a function at once: Powertools serves one request a process."""

import multiprocessing
import queue
from collections.abc import Callable
from typing import Any

import pytest

from functions.api import resources

_FORK = multiprocessing.get_context("fork")
# The children only do what their parent's test thread would have done.
FORKS = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")


def at_once(count: int, call: Callable[[], Any], *, seconds: float = 60.0) -> list[Any]:
    """What `call` answers in each of `count` processes that start it together."""
    if resources.get.cache_info().currsize:
        resources.get().engine.dispose()
    resources.get.cache_clear()
    barrier, answers = _FORK.Barrier(count), _FORK.Queue()

    def run() -> None:
        barrier.wait(seconds)
        try:
            answers.put(call())
        except BaseException as error:
            answers.put(f"{type(error).__name__}: {error}")

    processes = [_FORK.Process(target=run, daemon=True) for _ in range(count)]
    for process in processes:
        process.start()
    try:
        return [answers.get(timeout=seconds) for _ in processes]
    except queue.Empty:
        raise AssertionError(f"not all of {count} processes answered in {seconds} s") from None
    finally:
        for process in processes:
            process.join(5)
            process.kill()
            process.join()
            process.close()
        answers.close()

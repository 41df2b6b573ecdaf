"""Servers and commands as child processes that are found again, watched, and always ended."""

import contextlib
import dataclasses
import json
import os
import random
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from infra.local.errors import LocalError, tail


@dataclasses.dataclass(frozen=True)
class ProcessRef:
    """A process that outlives its starter; the start time tells it from a later one of its id."""

    pid: int
    started: float

    @classmethod
    def of(cls, pid: int) -> Self:
        return cls(pid=pid, started=psutil.Process(pid).create_time())

    @classmethod
    def load(cls, file: Path) -> Self:
        return cls(**json.loads(file.read_text()))

    def save(self, file: Path) -> None:
        file.write_text(json.dumps(dataclasses.asdict(self)))

    def is_alive(self) -> bool:
        try:
            process = psutil.Process(self.pid)
            same = abs(float(process.create_time()) - self.started) < 2
            return same and bool(process.status() != psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return False

    def group(self) -> list[psutil.Process]:
        """The process and what is left of the process group that it led."""
        if psutil.pid_exists(self.pid) and not self.is_alive() and not _is_zombie(self.pid):
            return []  # its number belongs to somebody else by now
        members = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, ProcessLookupError):
                leader = os.getpgid(process.pid)
                if leader == self.pid and process.status() != psutil.STATUS_ZOMBIE:
                    members.append(process)
        return members

    def stop(self, *, polite: signal.Signals, patience: float) -> None:
        """Asks the process to end, then ends it and its group by force."""
        if self.is_alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, polite)
            _reap_until(lambda: not self.is_alive(), pid=self.pid, patience=patience)
        for process in self.group():
            with contextlib.suppress(psutil.Error):
                process.kill()
        _reap_until(lambda: not self.group(), pid=self.pid, patience=5)


def _is_zombie(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _reap_until(condition: Callable[[], bool], *, pid: int, patience: float) -> None:
    deadline = time.monotonic() + patience
    while not condition() and time.monotonic() < deadline:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
        time.sleep(0.02)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def wait_until(
    ready: Callable[[], bool],
    *,
    process: subprocess.Popen[bytes],
    what: str,
    log: Path,
    seconds: float,
) -> None:
    """Waits for a server to be ready; raises `LocalError` when it ends or the time is over."""
    deadline = time.monotonic() + seconds
    while not ready():
        if process.poll() is not None:
            raise LocalError(
                f"{what} ended with {process.returncode} before it was ready. "
                f"The end of {log}:\n{tail(log)}"
            )
        if time.monotonic() > deadline:
            raise LocalError(
                f"{what} was not ready after {seconds:.0f} s. The end of {log}:\n{tail(log)}"
            )
        time.sleep(0.02)


NOTE_SUFFIX = ".process"
"""Ending of the file beside a command's log that names its process while it runs."""


class Command:
    """A command with its output in a log file; leaving the `with` block ends it.

    `user` holds the arguments of `Popen` that say as whom it runs.
    """

    def __init__(
        self,
        arguments: Sequence[str | Path],
        *,
        what: str,
        log: Path,
        cwd: Path,
        environ: Mapping[str, str],
        user: Mapping[str, Any] | None = None,
    ) -> None:
        self._what = what
        self._log = log
        self._note = log.with_suffix(NOTE_SUFFIX)
        with log.open("wb") as output, uninterrupted():
            self._process = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=cwd,
                env=environ,
                # Its own group, so that it and its children can be ended together.
                start_new_session=True,
                **(user or {}),
            )
            self._ref = ProcessRef.of(self._process.pid)
            self._ref.save(self._note)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with uninterrupted():
            # Its children too, and only then go on: they may be writing what is removed next.
            self._ref.stop(polite=signal.SIGKILL, patience=5)
            self._process.wait()
            self._note.unlink(missing_ok=True)

    def wait(self, *, seconds: float, watch: Callable[[str], None] | None = None) -> None:
        """Waits for success; `watch` sees the last line of output while it runs."""
        deadline = time.monotonic() + seconds
        while self._process.poll() is None:
            if time.monotonic() > deadline:
                raise LocalError(
                    f"{self._what} took longer than {seconds:.0f} s. "
                    f"The end of {self._log}:\n{tail(self._log)}"
                )
            if watch is not None:
                watch(tail(self._log, lines=1).strip())
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(0.1)
        if self._process.returncode != 0:
            raise LocalError(
                f"{self._what} failed ({self._process.returncode}). "
                f"The end of {self._log}:\n{tail(self._log, lines=40)}"
            )


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on.

    Below the range that the system takes for outgoing connections, so that none of these takes it
    before our server does.
    """
    for _ in range(1000):
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise LocalError("No port of 127.0.0.1 between 20000 and 32000 is free.")


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM and a closed terminal end the block as Ctrl-C does, so that clean-up runs."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    with _handling([signal.SIGTERM, signal.SIGHUP], interrupt):
        yield


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Lets a short block run to its end; a signal that came meanwhile is delivered after it.

    A process just started would otherwise be lost before anybody has written down its number.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are handled in the main thread alone
        return
    came: list[int] = []
    with _handling(_INTERRUPTS, lambda number, frame: came.append(number)):
        yield
    if came:
        signal.raise_signal(came[0])


_INTERRUPTS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@contextlib.contextmanager
def _handling(numbers: Sequence[int], handler: Callable[[int, object], object]) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)

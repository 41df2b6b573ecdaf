"""The processes behind the platform: found, killed, stopped, and brought back."""

import contextlib
import dataclasses
import os
import pwd
import random
import signal
import subprocess
import threading
import time
from collections.abc import Iterator

import psutil

from infra.local import postgres
from infra.local.errors import LocalError
from infra.local.processes import ProcessRef
from infra.local.up import LocalTarget


class Functions:
    """The processes that the emulator runs functions in."""

    def __init__(self, target: LocalTarget, names: dict[str, str]) -> None:
        assert target.state.ministack is not None
        self._emulator = target.state.ministack.process.pid
        self._names = names
        self._paused: set[int] = set()
        self._lock = threading.Lock()

    def of(self, function: str) -> list[psutil.Process]:
        """Busy or idle; which of them works on something is not visible from outside."""
        found = {}
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in psutil.Process(self._emulator).children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    name = process.environ().get("AWS_LAMBDA_FUNCTION_NAME")
                    if name == self._names[function]:
                        found[process.ppid(), process.pid] = process
        # Not the children of such a process: without the one that wakes it up it would sleep on.
        processes = {pid for _, pid in found}
        return [process for (parent, _), process in found.items() if parent not in processes]

    def kill(self, function: str, rng: random.Random) -> bool:
        processes = self.of(function)
        if not processes:
            return False
        with contextlib.suppress(psutil.Error):
            rng.choice(processes).kill()
            return True
        return False

    def kill_all(self, function: str) -> None:
        for process in self.of(function):
            with contextlib.suppress(psutil.Error):
                process.kill()

    def pause(self, function: str, rng: random.Random, seconds: float) -> bool:
        """Stops a process, every thread of it, and lets it go on later."""
        processes = self.of(function)
        if not processes:
            return False
        process = rng.choice(processes)
        with contextlib.suppress(psutil.Error):
            process.suspend()
            with self._lock:
                self._paused.add(process.pid)
            timer = threading.Timer(seconds, self._resume, [process])
            timer.daemon = True
            timer.start()
            return True
        return False

    def _resume(self, process: psutil.Process) -> None:
        with self._lock:
            self._paused.discard(process.pid)
        with contextlib.suppress(psutil.Error):
            process.resume()

    def resume_all(self) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in psutil.Process(self._emulator).children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    if process.status() == psutil.STATUS_STOPPED:
                        process.resume()


class Database:
    """The PostgreSQL of a target: stopped and started again on the same port and data."""

    def __init__(self, target: LocalTarget) -> None:
        self._target = target
        self._started: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def kill_session(self, rng: random.Random) -> bool:
        """SIGKILL to one session; the server ends all others, recovers and goes on by itself."""
        sessions = [
            process
            for process in self._server().children()
            if "platform platform" in " ".join(_command_line(process))
        ]
        if not sessions:
            return False
        with contextlib.suppress(psutil.Error):
            rng.choice(sessions).kill()
            return True
        return False

    @contextlib.contextmanager
    def stopped(self, *, immediately: bool) -> Iterator[None]:
        """Fast shutdown, or an immediate one, which ends like a crash; it runs again afterwards."""
        with self._lock:
            server = self._server()
            command, cwd = server.cmdline(), server.cwd()
            user = _user(server)
            server.send_signal(signal.SIGQUIT if immediately else signal.SIGINT)
            self._wait_for_end(server)
            try:
                yield
            finally:
                self._start(command, cwd, user)

    def _server(self) -> psutil.Process:
        running = self._target.state.postgres
        assert running is not None
        return psutil.Process(running.process.pid)

    def _wait_for_end(self, server: psutil.Process) -> None:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(server.pid, os.WNOHANG)
            if not server.is_running() or server.status() == psutil.STATUS_ZOMBIE:
                return
            time.sleep(0.02)
        raise TimeoutError("PostgreSQL did not stop within 30 s")

    def _start(self, command: list[str], cwd: str, user: dict[str, object]) -> None:
        with open(os.path.join(cwd, "postgres.log"), "ab") as log:
            self._started = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd=cwd,
                env={"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"},
                **user,  # type: ignore[call-overload]
            )
        running = self._target.state.postgres
        assert running is not None
        # Noted at once, so that stopping the target finds the server that runs now.
        self._target._note(
            postgres=dataclasses.replace(running, process=ProcessRef.of(self._started.pid))
        )
        wait_until_it_answers(self._target.state.database_url)

    def reap(self) -> None:
        """Tells Popen that its server has ended."""
        if self._started is not None:
            self._started.wait(timeout=30)


def wait_until_it_answers(url: str, *, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            postgres.connect(url).close()
            return
        except LocalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def _command_line(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


def _user(server: psutil.Process) -> dict[str, object]:
    uid = server.uids().real
    if uid == os.geteuid():
        return {}
    return {"user": uid, "group": pwd.getpwuid(uid).pw_gid, "extra_groups": []}

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from infra.local.errors import LocalError
from infra.local.processes import (
    Command,
    ProcessRef,
    free_port,
    interruptible,
    uninterrupted,
    wait_until,
)
from tests.local.conftest import eventually

_SLEEPER = [sys.executable, "-c", "import time; time.sleep(600)"]
_PARENT = f"import subprocess, sys; subprocess.run({_SLEEPER!r})"


def _command(folder: Path, code: str) -> Command:
    return Command(
        [sys.executable, "-c", code],
        what="The experiment",
        log=folder / "log.txt",
        cwd=folder,
        environ={"PATH": os.defpath},
    )


def test_a_process_is_known_by_its_start_time_as_well_as_its_number() -> None:
    me = ProcessRef.of(os.getpid())

    assert me.is_alive()
    assert not ProcessRef(pid=me.pid, started=me.started - 3600).is_alive()


def test_stopping_a_process_whose_number_was_given_to_another_leaves_that_one_alone() -> None:
    with subprocess.Popen(_SLEEPER, start_new_session=True) as bystander:
        started = psutil.Process(bystander.pid).create_time()
        before_a_reboot = ProcessRef(pid=bystander.pid, started=started - 3600)

        before_a_reboot.stop(polite=signal.SIGTERM, patience=1)

        assert bystander.poll() is None
        bystander.kill()


def test_stopping_ends_the_children_that_a_killed_process_left_behind() -> None:
    with subprocess.Popen([sys.executable, "-c", _PARENT], start_new_session=True) as parent:
        ref = ProcessRef.of(parent.pid)
        assert eventually(lambda: len(ref.group()) == 2)
        parent.kill()
        parent.wait()
        assert len(ref.group()) == 1

        ref.stop(polite=signal.SIGTERM, patience=1)

        assert eventually(lambda: ref.group() == [])


def test_a_process_that_ignores_the_polite_signal_is_ended_by_force(tmp_path: Path) -> None:
    deaf = (
        "import signal, time, pathlib; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "pathlib.Path('deaf').touch(); time.sleep(600)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", deaf], start_new_session=True, cwd=tmp_path
    ) as process:
        ref = ProcessRef.of(process.pid)
        assert eventually((tmp_path / "deaf").exists)

        ref.stop(polite=signal.SIGTERM, patience=0.2)

        assert not ref.is_alive()


def test_a_failed_command_is_told_with_the_end_of_its_output(tmp_path: Path) -> None:
    with (
        _command(tmp_path, "print('the cause'); raise SystemExit(3)") as command,
        pytest.raises(LocalError, match=r"The experiment failed \(3\)(.|\n)*the cause"),
    ):
        command.wait(seconds=20)


def test_a_command_that_takes_too_long_is_given_up_and_ended(tmp_path: Path) -> None:
    with (
        pytest.raises(LocalError, match="longer than 0 s"),
        _command(tmp_path, _PARENT) as command,
    ):
        command.wait(seconds=0.3)

    assert _processes_in(tmp_path) == []


def test_leaving_the_block_ends_a_command_and_its_children(tmp_path: Path) -> None:
    with _command(tmp_path, _PARENT):
        assert eventually(lambda: len(_processes_in(tmp_path)) == 2)

    assert _processes_in(tmp_path) == []


def test_the_last_line_of_output_can_be_watched(tmp_path: Path) -> None:
    code = "import time; print('half way', flush=True); time.sleep(0.5)"
    seen: list[str] = []

    with _command(tmp_path, code) as command:
        command.wait(seconds=20, watch=seen.append)

    assert "half way" in seen


def test_a_server_that_ends_before_it_is_ready_is_told_with_its_log(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    log.write_text("address in use\n")
    with (
        subprocess.Popen([sys.executable, "-c", "raise SystemExit(1)"]) as process,
        pytest.raises(LocalError, match=r"ended with 1 before(.|\n)*address in use"),
    ):
        wait_until(lambda: False, process=process, what="The server", log=log, seconds=20)


def test_a_server_that_is_never_ready_is_given_up(tmp_path: Path) -> None:
    with subprocess.Popen(_SLEEPER) as process:
        with pytest.raises(LocalError, match="not ready after"):
            wait_until(
                lambda: False,
                process=process,
                what="The server",
                log=tmp_path / "none.log",
                seconds=0.1,
            )
        process.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_in_an_uninterrupted_block_is_delivered_after_it(number: signal.Signals) -> None:
    done = []

    def a_short_block() -> None:
        with uninterrupted(), uninterrupted():
            os.kill(os.getpid(), number)
            done.append("the rest of the block")

    with interruptible(), pytest.raises(KeyboardInterrupt):
        a_short_block()

    assert done == ["the rest of the block"]


def test_ports_lie_below_those_of_outgoing_connections() -> None:
    assert all(20_000 <= free_port() < 32_000 for _ in range(20))


def _processes_in(folder: Path) -> list[int]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            alive = process.status() != psutil.STATUS_ZOMBIE
            if alive and process.cwd() == str(folder):
                found.append(process.pid)
    return found

"""Programs that start servers of their own, run to their end."""

import subprocess
from typing import Any

_PATIENCE = 30.0
"""Seconds."""


def run(command: list[str], **arguments: Any) -> subprocess.CompletedProcess[str]:
    """As `subprocess.run` with its output taken as text, which kills where it is interrupted; here
    the program is told to end, so that it stops what it has started."""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **arguments
    ) as program:
        try:
            out, errors = program.communicate()
        except BaseException:
            program.terminate()
            # What it says meanwhile has to be taken, or it would fail over that.
            try:
                program.communicate(timeout=_PATIENCE)
            except subprocess.TimeoutExpired:
                program.kill()
            raise
    return subprocess.CompletedProcess(command, program.returncode, out, errors)

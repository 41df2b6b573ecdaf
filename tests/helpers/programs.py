"""Programs that start servers of their own, run to their end."""

import subprocess
from typing import Any


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
            raise
    return subprocess.CompletedProcess(command, program.returncode, out, errors)

"""`jobctl`: the entry point; turns what went wrong into a sentence and an exit code."""

import enum
import sys
from collections.abc import Sequence

from jobclient import errors


class ExitCode(enum.IntEnum):
    """What a script can tell by the exit code."""

    DONE = 0
    FAILED = 1
    """The platform refused the request, or a file cannot be read or written."""
    USAGE = 2
    """The command line is wrong; nothing was sent."""
    JOB_FAILED = 3
    """The job ended without a result: failed or cancelled."""
    NOT_FOUND = 4
    """No such job or template, or its result has expired."""
    NOT_ALLOWED = 5
    """The API key is missing, wrong or revoked."""
    UNREACHABLE = 6
    """No answer, throttled or an error of the platform, also after the retries: try again later."""
    MISMATCH = 7
    """A file is not what the platform or its manifest says."""
    DEADLINE = 8
    """The job was not final within --timeout; it goes on."""
    OPERATOR = 9
    """An operator's command failed: AWS, the platform or a function refused it."""
    INTERRUPTED = 130
    """Ctrl-C."""


_EXIT_CODES: list[tuple[type[errors.JobClientError], ExitCode]] = [
    (errors.JobFailed, ExitCode.JOB_FAILED),
    (errors.NotFound, ExitCode.NOT_FOUND),
    (errors.Gone, ExitCode.NOT_FOUND),
    (errors.Unauthorized, ExitCode.NOT_ALLOWED),
    (errors.Forbidden, ExitCode.NOT_ALLOWED),
    (errors.TooManyRequests, ExitCode.UNREACHABLE),
    (errors.ServerError, ExitCode.UNREACHABLE),
    (errors.TransportError, ExitCode.UNREACHABLE),
    (errors.StorageRefused, ExitCode.UNREACHABLE),
    (errors.FileMismatch, ExitCode.MISMATCH),
    (errors.DeadlineExceeded, ExitCode.DEADLINE),
    (errors.AdminError, ExitCode.OPERATOR),
]


def exit_code(error: errors.JobClientError) -> ExitCode:
    return next((code for kind, code in _EXIT_CODES if isinstance(error, kind)), ExitCode.FAILED)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command line and ends the process with its exit code."""
    try:
        from jobclient import commands, output
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich"):
            raise
        sys.exit(f"jobctl needs {error.name}: pip install 'async-job-platform[client]'")
    try:
        commands.app(arguments, prog_name="jobctl")
    except errors.JobClientError as error:
        output.failure(str(error))
        if isinstance(error, errors.FunctionFailed) and error.log:
            output.note(error.log)
        if isinstance(error, errors.Forbidden):
            output.note("Check JOBS_API_KEY or --key; a key just made needs some seconds on AWS.")
        sys.exit(exit_code(error))
    except OSError as error:
        output.failure(str(error))
        sys.exit(ExitCode.FAILED)


if __name__ == "__main__":
    main()

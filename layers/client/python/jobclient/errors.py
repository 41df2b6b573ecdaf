"""What can go wrong, as one tree.

JobClientError
├── ApiError                    the platform answered with a problem (`.code`, `.status`)
│   ├── BadRequest              400
│   ├── Unauthorized            401
│   ├── Forbidden               403: the API key is missing, wrong or revoked
│   ├── NotFound                404: no such job or template, or it belongs to another client
│   ├── Conflict                409: not in this state (result not ready, submit in progress)
│   ├── Gone                    410: the result has expired
│   ├── PayloadTooLarge         413
│   ├── Unprocessable           422: parameters refused, or Idempotency-Key used otherwise
│   ├── TooManyRequests         429: throttled, over quota, too many queued jobs
│   └── ServerError             5xx
├── TransportError              no answer: the network failed, also after the retries
├── StorageRefused              S3 does not hand the result over (`.status`)
├── UnexpectedAnswer            an answer that is not the platform's
├── JobFailed                   the job ended without a result (`.job`)
│   └── JobCancelled            because somebody cancelled it
├── DeadlineExceeded            the job was not final in the time given (`.job`)
├── FileMismatch                a file is not what it should be
│   ├── ChecksumMismatch        a download differs from the size or SHA-256 that the platform states
│   ├── ManifestMismatch        a file differs from its manifest (`.problems`)
│   └── ManifestUnreadable      the manifest is none
└── AdminError                  an operator's command failed
    ├── AwsFailed               AWS refused or could not be reached
    ├── StackNotFound           the stack, or one of its outputs, is not there
    ├── CommandRefused          the platform refused the command (`.code`)
    ├── FunctionFailed          a Lambda function ended with an error (`.error_type`, `.log`)
    └── StepFailed              one of several steps failed (`.undone`, `.left`)
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jobclient.models import Job


class JobClientError(Exception):
    """Base of every error that this package raises on purpose; its text is fit for a person."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
    """The platform's error answer (RFC 9457)."""

    status: int
    code: str
    title: str
    detail: str | None = None
    type: str = "about:blank"
    instance: str | None = None
    """Id of the request; the operator finds the cause by it."""
    errors: Sequence[Mapping[str, Any]] = ()
    """Each wrong field: `loc` (path), `msg`, `type`."""

    @classmethod
    def from_answer(cls, status: int, body: object, *, reason: str = "") -> "Problem":
        """Reads a problem; what a proxy or gateway answers becomes one as well as it can."""
        fields: Mapping[str, Any] = body if isinstance(body, Mapping) else {}
        detail = fields.get("detail") or fields.get("message") or fields.get("Message")
        errors = fields.get("errors")
        return cls(
            status=status,
            code=str(fields.get("code") or f"http_{status}"),
            title=str(fields.get("title") or reason or f"HTTP {status}"),
            detail=str(detail) if detail else None,
            type=str(fields.get("type") or "about:blank"),
            instance=str(fields["instance"]) if fields.get("instance") else None,
            errors=[one for one in errors if isinstance(one, Mapping)]
            if isinstance(errors, list)
            else (),
        )

    def __str__(self) -> str:
        lines = [f"{self.detail or self.title} ({self.code}, HTTP {self.status})"]
        for error in self.errors:
            where = ".".join(str(step) for step in error.get("loc", ()))
            lines.append(f"  {where}: {error.get('msg', '')}" if where else f"  {error.get('msg')}")
        if self.status >= 500 and self.instance:
            lines.append(f"  Tell the operator this request id: {self.instance}")
        return "\n".join(lines)


class ApiError(JobClientError):
    """The platform answered with a problem."""

    def __init__(self, problem: Problem, *, retry_after: float | None = None) -> None:
        super().__init__(str(problem))
        self.problem = problem
        self.retry_after = retry_after
        """Seconds after which the platform says to try again; None: it does not say."""

    @property
    def code(self) -> str:
        return self.problem.code

    @property
    def status(self) -> int:
        return self.problem.status


class BadRequest(ApiError):
    """The request cannot be read."""


class Unauthorized(ApiError):
    """The request carries no credentials that count."""


class Forbidden(ApiError):
    """The API key is missing, wrong or revoked."""


class NotFound(ApiError):
    """No such job or template, or it belongs to another client."""


class Conflict(ApiError):
    """The job's state does not allow it, or the same submit still runs."""


class Gone(ApiError):
    """The result has expired."""


class PayloadTooLarge(ApiError):
    """The request is too large."""


class Unprocessable(ApiError):
    """The parameters are refused, or the Idempotency-Key was used for another request."""


class TooManyRequests(ApiError):
    """Throttled, over the plan's quota, or too many queued jobs."""


class ServerError(ApiError):
    """The platform failed."""


_BY_STATUS: dict[int, type[ApiError]] = {
    400: BadRequest,
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    410: Gone,
    413: PayloadTooLarge,
    422: Unprocessable,
    429: TooManyRequests,
}


def api_error(problem: Problem, *, retry_after: float | None = None) -> ApiError:
    """The error class that belongs to the problem's status."""
    default = ServerError if problem.status >= 500 else ApiError
    return _BY_STATUS.get(problem.status, default)(problem, retry_after=retry_after)


class TransportError(JobClientError):
    """No answer: the network failed, also after the retries."""


class StorageRefused(JobClientError):
    """S3 does not hand the result over, also with a fresh URL."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(f"S3 refuses the download: HTTP {status}: {reason}")
        self.status = status


class UnexpectedAnswer(JobClientError):
    """The answer is not one of the Async Job Platform."""


class JobFailed(JobClientError):
    """The job ended without a result."""

    def __init__(self, job: "Job") -> None:
        reason = f"{job.error.message} ({job.error.code})" if job.error else "no reason given"
        super().__init__(f"Job {job.id} {job.status}: {reason}")
        self.job = job


class JobCancelled(JobFailed):
    """The job was cancelled."""

    def __init__(self, job: "Job") -> None:
        JobClientError.__init__(self, f"Job {job.id} was cancelled")
        self.job = job


class DeadlineExceeded(JobClientError):
    """The job was not final in the time given; it goes on."""

    def __init__(self, job: "Job", timeout: float) -> None:
        super().__init__(f"Job {job.id} is still {job.status} after {timeout:g} s; it goes on")
        self.job = job


class FileMismatch(JobClientError):
    """A file is not what it should be."""


class ChecksumMismatch(FileMismatch):
    """A download differs from what the platform states; the incomplete file has been removed."""


class ManifestMismatch(FileMismatch):
    """A file differs from its manifest."""

    def __init__(self, file: str, problems: Sequence[str]) -> None:
        super().__init__("\n  ".join([f"{file} does not match its manifest:", *problems]))
        self.problems = list(problems)


class ManifestUnreadable(FileMismatch):
    """The manifest is none."""


class AdminError(JobClientError):
    """An operator's command failed."""


class AwsFailed(AdminError):
    """AWS refused a call or could not be reached."""


class StackNotFound(AdminError):
    """The stack, or one of its outputs, is not there."""


class CommandRefused(AdminError):
    """The platform refused the command."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{message} ({code})")
        self.code = code


class FunctionFailed(AdminError):
    """A Lambda function ended with an error."""

    def __init__(
        self, function: str, *, error_type: str, message: str, log: str | None = None
    ) -> None:
        super().__init__(f"{function} failed: {error_type}: {message}")
        self.function = function
        self.error_type = error_type
        self.log = log
        """The last 4 kB of the invocation's log, where Lambda hands it over."""


class StepFailed(AdminError):
    """One of several steps failed, and those before it have been taken back as far as possible."""

    def __init__(
        self, step: str, cause: str, *, undone: Sequence[str], left: Sequence[str]
    ) -> None:
        lines = [f"Could not {step}: {cause}"]
        lines += [f"  Undone: {what}" for what in undone]
        lines += [f"  LEFT BEHIND, please remove it by hand: {what}" for what in left]
        if not undone and not left:
            lines.append("  Nothing had been done before it.")
        super().__init__("\n".join(lines))
        self.undone = list(undone)
        self.left = list(left)

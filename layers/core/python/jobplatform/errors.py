"""Every error the platform raises on purpose.

PlatformError
├── RequestError                 the caller can act on it; its message is shown to the customer
│   ├── MalformedRequest         400
│   ├── InvalidIdempotencyKey    400
│   ├── InvalidCursor            400
│   ├── UnknownClient            403
│   ├── RouteNotFound            404
│   ├── JobNotFound              404
│   ├── TemplateNotFound         404
│   ├── MethodNotAllowed         405
│   ├── SubmitInProgress         409
│   ├── ResultNotReady           409
│   ├── JobNotCancellable        409
│   ├── ResultExpired            410
│   ├── PayloadTooLarge          413
│   ├── UnsupportedMediaType     415
│   ├── InvalidRequest           422
│   ├── IdempotencyKeyReused     422
│   ├── TooManyQueuedJobs        429
│   └── ServiceUnavailable       503
├── OperatorError                an operator's command cannot be carried out
│   ├── ClientNotFound
│   ├── ClientExists
│   ├── KeyNotFound
│   ├── KeyExists
│   └── JobNotRetryable
└── ExecutionError               how an attempt ended other than by a result
    ├── PermanentFailure         fail now, trying again cannot help
    │   ├── TemplateRejected
    │   ├── ExportTooLong
    │   ├── QueryTooLong
    │   ├── ResultTooLarge
    │   └── SnapshotTooOld
    ├── LeaseLost                another attempt owns the job; touch nothing
    └── CancelRequested          the client wants it no more

The class docstring is the default message; `code` is stable and documented in
docs/reference/errors.md. HTTP statuses are in `problems`, nowhere else.
"""

from datetime import timedelta
from typing import Any, ClassVar


class PlatformError(Exception):
    """Something went wrong."""

    code: ClassVar[str] = "error"

    def __init__(self, message: str | None = None, **facts: Any) -> None:
        self.message = message or (type(self).__doc__ or "").strip().splitlines()[0]
        self.facts = facts
        super().__init__(self.message)


class RequestError(PlatformError):
    """The request cannot be served."""

    code = "bad_request"
    retry_after: timedelta | None = None

    def __init__(
        self,
        message: str | None = None,
        *,
        errors: list[dict[str, Any]] | None = None,
        retry_after: timedelta | None = None,
        **facts: Any,
    ) -> None:
        super().__init__(message, **facts)
        self.errors = errors
        if retry_after is not None:
            self.retry_after = retry_after


class MalformedRequest(RequestError):
    """The body is not valid JSON."""

    code = "malformed_request"


class InvalidIdempotencyKey(RequestError):
    """Idempotency-Key must be 1 to 255 printable ASCII characters."""

    code = "invalid_idempotency_key"


class InvalidCursor(RequestError):
    """The cursor is not one that this API gave for these filters; start again without it."""

    code = "invalid_cursor"


class UnknownClient(RequestError):
    """The API key belongs to no active client."""

    code = "forbidden"


class RouteNotFound(RequestError):
    """There is nothing at this address."""

    code = "not_found"


class JobNotFound(RequestError):
    """There is no such job."""

    code = "job_not_found"


class TemplateNotFound(RequestError):
    """There is no such template; GET /templates lists them."""

    code = "template_not_found"


class MethodNotAllowed(RequestError):
    """This address does not answer that method."""

    code = "method_not_allowed"


class SubmitInProgress(RequestError):
    """A request with this Idempotency-Key is being processed; try again shortly."""

    code = "submit_in_progress"
    retry_after = timedelta(seconds=1)


class ResultNotReady(RequestError):
    """The job has no result to download."""

    code = "result_not_ready"


class JobNotCancellable(RequestError):
    """The job has already ended."""

    code = "job_not_cancellable"


class ResultExpired(RequestError):
    """The result is no longer kept; submit the job again."""

    code = "result_expired"


class PayloadTooLarge(RequestError):
    """The request body is too large."""

    code = "payload_too_large"


class UnsupportedMediaType(RequestError):
    """Send the body as application/json."""

    code = "unsupported_media_type"


class InvalidRequest(RequestError):
    """The request has values that are not allowed; see errors."""

    code = "invalid_request"


class IdempotencyKeyReused(RequestError):
    """This Idempotency-Key was used with another request body."""

    code = "idempotency_key_reused"


class TooManyQueuedJobs(RequestError):
    """Too many jobs of this client are waiting or running."""

    code = "too_many_queued_jobs"
    retry_after = timedelta(seconds=30)


class ServiceUnavailable(RequestError):
    """The service cannot answer right now; try again shortly."""

    code = "service_unavailable"
    retry_after = timedelta(seconds=5)


class OperatorError(PlatformError):
    """The command cannot be carried out."""

    code = "operator_error"


class ClientNotFound(OperatorError):
    """There is no such client."""

    code = "client_not_found"


class ClientExists(OperatorError):
    """A client of this name exists."""

    code = "client_exists"


class KeyNotFound(OperatorError):
    """There is no such key."""

    code = "key_not_found"


class KeyExists(OperatorError):
    """A key of this id or hash exists, and it is another."""

    code = "key_exists"


class JobNotRetryable(OperatorError):
    """Only a failed or cancelled job can be tried again."""

    code = "job_not_retryable"


class ExecutionError(PlatformError):
    """The attempt ended without a result."""

    code = "execution_error"


class PermanentFailure(ExecutionError):
    """The job cannot succeed."""

    code = "job_failed"
    safe_message = "The report could not be made."
    """What the customer reads; the exception's own message is the operator's."""


class TemplateRejected(PermanentFailure):
    """The template does not accept these parameters."""

    code = "template_rejected"
    safe_message = "The template did not accept the parameters."


class ResultTooLarge(PermanentFailure):
    """The result is larger than the template or the plan allows."""

    code = "result_too_large"
    safe_message = (
        "The result is larger than your plan or the template allows; narrow the parameters."
    )


class ExportTooLong(PermanentFailure):
    """The export needs longer than one worker may run, and cannot go on in another."""

    code = "export_too_long"
    safe_message = "The report takes too long to make; narrow the parameters."


class QueryTooLong(PermanentFailure):
    """The query takes longer than the template, the plan or the worker allows."""

    code = "query_too_long"
    safe_message = "The report's query takes longer than it may; narrow the parameters."


class SnapshotTooOld(PermanentFailure):
    """The export needs its snapshot for longer than its template allows."""

    code = "snapshot_too_old"
    safe_message = "The report takes too long to make; narrow the parameters."


class LeaseLost(ExecutionError):
    """Another attempt owns the job now."""

    code = "lease_lost"


class CancelRequested(ExecutionError):
    """The client cancelled the job."""

    code = "cancelled"

"""What goes over the wire: requests as they are accepted, jobs and templates as they are shown."""

import datetime as dt
import json
import re
from typing import Annotated, Any, Literal, Self

import pydantic

from jobplatform import jobs, problems, templating

MAX_PARAMETERS_BYTES = 16 * 1024
MAX_METADATA_BYTES = 4 * 1024


def _text(value: Any) -> Any:
    # Pydantic would take a number for a Unix time, and so a forgotten unit for a year.
    if isinstance(value, str) and not re.match(r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ]", value):
        raise ValueError("must be like 2026-01-31T09:00:00+01:00 (RFC 3339)")
    if not isinstance(value, str | None):
        raise ValueError("must be a text like 2026-01-31T09:00:00+01:00 (RFC 3339)")
    return value


def _utc(value: dt.datetime) -> dt.datetime:
    try:
        return value.astimezone(dt.UTC)
    except OverflowError:
        raise ValueError("is not a time in UTC that can be kept") from None


Moment = Annotated[
    pydantic.AwareDatetime, pydantic.BeforeValidator(_text), pydantic.AfterValidator(_utc)
]
"""A time as RFC 3339 says it, with an offset; in UTC from here on."""


def _bounded(limit: int) -> Any:
    def check(value: dict[str, Any]) -> dict[str, Any]:
        if len(json.dumps(value)) > limit:
            raise ValueError(f"may be {limit} bytes of JSON at the most")
        return value

    return pydantic.AfterValidator(check)


class _View(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True, use_attribute_docstrings=True)


class SubmitJobRequest(_View):
    """A job to be done."""

    model_config = pydantic.ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"template_name": "flights", "parameters": {"carrier": "UA"}}]
        },
    )

    template_name: Annotated[str, pydantic.Field(min_length=1, max_length=100)]
    """Which report; GET /templates lists them."""
    parameters: Annotated[dict[str, Any], _bounded(MAX_PARAMETERS_BYTES)] = {}
    """As the template's JSON Schema says."""
    run_at: Moment | None = None
    """Not before this time (RFC 3339 with an offset); now if it is left out."""
    metadata: Annotated[dict[str, Any], _bounded(MAX_METADATA_BYTES)] = {}
    """The client's own words about the job; kept and shown, not read."""
    format: jobs.ResultFormat = jobs.ResultFormat.CSV
    compression: jobs.Compression = jobs.Compression.NONE


class Progress(_View):
    """How far a job is; `percent` is an estimate, null where there is none."""

    rows: int
    bytes: int
    percent: int | None


class JobError(_View):
    """Why a job failed, in words for the customer."""

    code: str
    message: str


class ResultView(_View):
    """Facts of a result; `bytes` and `sha256` are those of the file as it is downloaded."""

    rows: int
    bytes: int
    sha256: str
    format: jobs.ResultFormat
    compression: jobs.Compression
    as_of: dt.datetime | None
    consistency: str
    expires_at: dt.datetime


class Links(_View):
    """Paths below the address of the API."""

    self: str
    download: str | None
    cancel: str | None


class JobView(_View):
    """A job as its client sees it."""

    id: str
    template_name: str
    template_version: str
    parameters: dict[str, Any]
    metadata: dict[str, Any]
    status: jobs.JobStatus
    run_at: dt.datetime | None
    created_at: dt.datetime
    available_at: dt.datetime
    started_at: dt.datetime | None
    finished_at: dt.datetime | None
    expires_at: dt.datetime | None
    cancel_requested_at: dt.datetime | None
    attempts: int
    max_attempts: int
    progress: Progress
    error: JobError | None
    result: ResultView | None
    links: Links

    @classmethod
    def of(cls, job: jobs.Job) -> Self:
        path = f"/jobs/{job.id}"
        result = job.result
        return cls(
            id=str(job.id),
            template_name=job.template_name,
            template_version=job.template_version,
            parameters=job.parameters,
            metadata=job.metadata,
            status=job.status,
            run_at=job.run_at,
            created_at=job.created_at,
            available_at=job.available_at,
            started_at=job.started_at,
            finished_at=job.finished_at,
            expires_at=job.expires_at,
            cancel_requested_at=job.cancel_requested_at,
            attempts=job.attempts,
            max_attempts=job.max_attempts,
            progress=Progress(rows=job.rows_written, bytes=job.bytes_written, percent=job.percent),
            error=(
                JobError(code=job.error_code, message=job.error_message or "")
                if job.error_code
                else None
            ),
            result=(
                ResultView(
                    rows=result.rows,
                    bytes=result.bytes,
                    sha256=result.sha256,
                    format=job.format,
                    compression=job.compression,
                    as_of=result.as_of,
                    consistency=result.consistency,
                    expires_at=result.expires_at,
                )
                if result
                else None
            ),
            links=Links(
                self=path,
                download=f"{path}/download" if result else None,
                cancel=None if job.is_final else f"{path}/cancel",
            ),
        )


class JobPage(_View):
    """Jobs, newest first; `next_cursor` is null on the last page."""

    items: list[JobView]
    next_cursor: str | None


class DownloadView(_View):
    """Where a result and its manifest can be fetched, and until when that works."""

    url: str
    manifest_url: str
    """JSON: what was asked for, and rows, bytes and SHA-256 of each part."""
    expires_at: dt.datetime
    filename: str
    content_type: str
    bytes: int
    sha256: str


class ColumnView(_View):
    name: str
    type: str


class TemplateView(_View):
    """A report that can be asked for; `parameters` is their JSON Schema."""

    name: str
    version: str
    title: str
    description: str
    parameters: dict[str, Any]
    columns: list[ColumnView]

    @classmethod
    def of(cls, template: templating.Template) -> Self:
        return cls(
            name=template.name,
            version=template.version,
            title=template.title,
            description=template.description,
            parameters=template.schema(),
            columns=[
                ColumnView(name=column.name, type=column.type)
                for column in template.result_columns()
            ],
        )


class TemplateList(_View):
    items: list[TemplateView]


class Health(_View):
    """Whether the API works, and what was asked to know it."""

    status: Literal["ok", "unavailable"]
    version: str
    checks: dict[str, str]


class ProblemDetail(_View):
    """Where in the request a value is not allowed."""

    loc: list[str | int]
    msg: str
    type: str


class Problem(_View):
    """An error (RFC 9457); `code` is stable, `instance` is the request's id."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    instance: str
    errors: list[ProblemDetail] | None = None


_ANSWERS = {
    200: "OK",
    202: "Accepted",
    303: "The result is at the address in Location",
    400: "The request cannot be read",
    403: "The API key is missing or not valid",
    404: "There is no such thing, or it belongs to another client",
    409: "Not now",
    410: "The result is no longer kept",
    413: "The body is too large",
    415: "The body is not JSON",
    422: "Values that are not allowed, or a key that was used with another body",
    429: "Too many requests or jobs; see Retry-After",
    500: "Something went wrong on our side",
    503: "Not available right now; see Retry-After",
    504: "The answer took too long",
}
_ANYWHERE = (429, 500, 503, 504)
_TEXT, _SECONDS = {"type": "string"}, {"type": "integer", "minimum": 1}
_HEADERS: dict[str, dict[str, Any]] = {
    "Location": {"description": "Where it is; may be relative to the request.", "schema": _TEXT},
    "Retry-After": {"description": "Seconds to wait until it can help.", "schema": _SECONDS},
    "Idempotent-Replayed": {
        "description": "`true` where this key made its job in a request before.",
        "schema": {"type": "string", "enum": ["true"]},
    },
}
_ERROR_HEADERS = {409: "Retry-After", 429: "Retry-After", 503: "Retry-After"}


def answers(
    model: type[pydantic.BaseModel], *statuses: int, headers: dict[int, list[str]] | None = None
) -> dict[int, Any]:
    """The `responses` of a route in OpenAPI: `model` for success, a Problem for the others.

    Those that API Gateway or a failure may answer with anywhere need not be named. `headers` are
    those of a success, by status.
    """
    problem = {problems.CONTENT_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    found: dict[int, Any] = {}
    for status in {*statuses, *_ANYWHERE}:
        names = (headers or {}).get(status, [])
        if status in _ERROR_HEADERS:
            names = [_ERROR_HEADERS[status]]
        found[status] = {
            "description": _ANSWERS[status],
            "content": problem if status >= 400 else {"application/json": {"model": model}},
        }
        if names:
            found[status]["headers"] = {name: _HEADERS[name] for name in names}
    return found


def health_answers() -> dict[int, Any]:
    """Those of /health, which says the same whether all is well or not."""
    found = answers(Health, 200)
    found[503] = {"description": _ANSWERS[503], "content": found[200]["content"]}
    return found

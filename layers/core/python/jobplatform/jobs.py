"""A job, its five states and the transitions between them: pure, no I/O."""

import dataclasses
import datetime as dt
import enum
import secrets
import time
import uuid
from typing import Any


class JobStatus(enum.StrEnum):
    """Where a job is in its life; scheduled, retrying and expired are facts, not states."""

    QUEUED = "queued"
    """Waits for a worker, from `available_at` on."""
    RUNNING = "running"
    """A worker holds its lease."""
    SUCCEEDED = "succeeded"
    """Its result was published, whole and once."""
    FAILED = "failed"
    """It has no result and is not tried again."""
    CANCELLED = "cancelled"
    """Its client wanted it no more; nothing is left of it."""


TRANSITIONS: dict[JobStatus, frozenset[JobStatus]] = {
    JobStatus.QUEUED: frozenset({JobStatus.RUNNING, JobStatus.CANCELLED}),
    JobStatus.RUNNING: frozenset(
        {JobStatus.QUEUED, JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED}
    ),
    JobStatus.SUCCEEDED: frozenset(),
    # Only an operator's retry leaves a final state, and only one without a result.
    JobStatus.FAILED: frozenset({JobStatus.QUEUED}),
    JobStatus.CANCELLED: frozenset({JobStatus.QUEUED}),
}

FINAL = frozenset({JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED})


class ResultFormat(enum.StrEnum):
    """How rows are written."""

    CSV = "csv"
    """RFC 4180, UTF-8, header, LF line ends; NULL is empty, an empty text is `""`."""
    CSV_EXCEL = "csv-excel"
    """The same with a byte order mark, CRLF, and text guarded against being read as a formula."""
    JSONL = "jsonl"
    """JSON Lines: one object a row."""

    @property
    def extension(self) -> str:
        return "jsonl" if self is ResultFormat.JSONL else "csv"

    @property
    def content_type(self) -> str:
        return "application/jsonl" if self is ResultFormat.JSONL else "text/csv; charset=utf-8"


class Compression(enum.StrEnum):
    """How the object is compressed."""

    NONE = "none"
    GZIP = "gzip"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """The facts of a published result; `bytes` and `sha256` are those of the stored object."""

    key: str
    rows: int
    bytes: int
    sha256: str
    expires_at: dt.datetime
    as_of: dt.datetime | None
    consistency: str
    deleted_at: dt.datetime | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """One request to run a template, as the row in Postgres says."""

    id: uuid.UUID
    client_id: uuid.UUID
    plan: str
    template_name: str
    template_version: str
    parameters: dict[str, Any]
    metadata: dict[str, Any]
    format: ResultFormat
    compression: Compression
    status: JobStatus
    status_reason: str
    run_at: dt.datetime | None
    created_at: dt.datetime
    available_at: dt.datetime
    started_at: dt.datetime | None
    finished_at: dt.datetime | None
    expires_at: dt.datetime | None
    """When the finished job itself is purged."""
    attempts: int
    max_attempts: int
    attempt_token: uuid.UUID | None
    lease_expires_at: dt.datetime | None
    cancel_requested_at: dt.datetime | None
    rows_written: int
    bytes_written: int
    rows_estimated: int | None
    error_code: str | None
    error_message: str | None
    result: Result | None
    idempotency_key: str | None
    request_hash: str | None
    checkpoint: dict[str, Any] | None
    dead_letter_at: dt.datetime | None

    @property
    def is_final(self) -> bool:
        return self.status in FINAL

    @property
    def percent(self) -> int | None:
        """Progress by the planner's guess of the rows: 0-99 while running, 100 when succeeded."""
        if self.status is JobStatus.SUCCEEDED:
            return 100
        if self.status is not JobStatus.RUNNING or not self.rows_estimated:
            return None
        return min(99, self.rows_written * 100 // self.rows_estimated)


def new_id() -> uuid.UUID:
    """A UUID version 7 (RFC 9562): ordered by time, so that new rows share pages of an index."""
    milliseconds = time.time_ns() // 1_000_000
    bits = (milliseconds << 80) | secrets.randbits(80)
    bits = bits & ~(0xF << 76) | (0x7 << 76)
    bits = bits & ~(0x3 << 62) | (0x2 << 62)
    return uuid.UUID(int=bits)


def retry_delay(attempts: int, delays: tuple[dt.timedelta, ...]) -> dt.timedelta | None:
    """The wait after `attempts` failed ones, None when there is no further try."""
    return delays[attempts - 1] if attempts <= len(delays) else None


def result_key(job: Job, token: uuid.UUID) -> str:
    """The S3 key of one attempt's object: no two attempts share one, so none can harm another's."""
    suffix = ".gz" if job.compression is Compression.GZIP else ""
    return f"{attempt_prefix(job.client_id, job.id, token)}.{job.format.extension}{suffix}"


def attempt_prefix(client_id: uuid.UUID, job_id: uuid.UUID, token: uuid.UUID) -> str:
    """What every S3 key of an attempt starts with."""
    return f"results/{client_id}/{job_id}/{token}"

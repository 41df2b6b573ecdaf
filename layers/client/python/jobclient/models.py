"""What the platform answers, as frozen models.

Fields that this version does not know are kept (`model_extra`), and those that an older platform
does not send have defaults, so that client and platform need not be upgraded together.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final, Self

import pydantic

from jobclient import errors

FINAL_STATES: Final = frozenset({"succeeded", "failed", "cancelled"})


class _Answer(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True, extra="allow")


class Progress(_Answer):
    """How far a running job is."""

    rows: int = 0
    bytes: int = 0
    percent: float | None = None
    """None: the platform cannot tell yet."""


class JobError(_Answer):
    """Why a job failed, in words that are safe to show."""

    code: str = "unknown"
    message: str = ""


class Result(_Answer):
    """Facts about a result; `bytes` and `sha256` are those of the stored object."""

    rows: pydantic.NonNegativeInt
    bytes: pydantic.NonNegativeInt
    sha256: str
    format: str = "csv"
    compression: str | None = None
    expires_at: datetime | None = None
    """From then on the result cannot be downloaded."""
    as_of: datetime | None = None
    """The point in time that the data shows."""
    consistency: str | None = None


class Job(_Answer):
    """A job as it was when the platform answered."""

    id: str
    status: str
    template_name: str = ""
    template_version: str | int | None = None
    parameters: Mapping[str, Any] = pydantic.Field(default_factory=dict)
    metadata: Mapping[str, Any] | None = None
    run_at: datetime | None = None
    created_at: datetime | None = None
    available_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    expires_at: datetime | None = None
    progress: Progress = Progress()
    attempts: int = 0
    max_attempts: int | None = None
    error: JobError | None = None
    result: Result | None = None
    links: Mapping[str, Any] = pydantic.Field(default_factory=dict)

    @property
    def is_final(self) -> bool:
        """Whether the job has ended and will not change any more."""
        return self.status in FINAL_STATES

    def raise_for_status(self) -> Self:
        """The job itself, unless it ended without a result: then `JobFailed` or `JobCancelled`."""
        if self.status == "failed":
            raise errors.JobFailed(self)
        if self.status == "cancelled":
            raise errors.JobCancelled(self)
        return self


class SubmittedJob(Job):
    """The answer to a submit: the job, and under which key it was made."""

    idempotency_key: str
    replayed: bool = False
    """The job was there before this request: made by an earlier submit with the same key, or by a
    try of this one whose answer got lost."""


class Column(_Answer):
    """A column of a template's result."""

    name: str
    type: str = ""


class Template(_Answer):
    """A report that can be asked for; `parameters` is a JSON Schema."""

    name: str
    version: str | int | None = None
    title: str | None = None
    description: str | None = None
    parameters: Mapping[str, Any] = pydantic.Field(default_factory=dict)
    columns: Sequence[Column] = ()


class Ticket(_Answer):
    """A presigned URL for a result, and what the bytes behind it must be."""

    url: str
    bytes: pydantic.NonNegativeInt
    sha256: str
    filename: str = ""
    expires_at: datetime | None = None
    content_type: str | None = None
    manifest_url: str | None = None
    """Presigned too; None: this platform does not hand out manifests."""


class Health(_Answer):
    """What the platform says of itself."""

    status: str


class JobPage(_Answer):
    """One page of a list."""

    items: Sequence[Job]
    next_cursor: str | None = None


class TemplateList(_Answer):
    items: Sequence[Template]


class ManifestPart(_Answer):
    """One part of a result: a range of its bytes, in order."""

    number: int
    rows: pydantic.NonNegativeInt
    bytes: pydantic.NonNegativeInt
    sha256: str


class Manifest(_Answer):
    """The record beside a result that says what its bytes must be."""

    format: str
    compression: str | None = None
    rows: pydantic.NonNegativeInt
    bytes: pydantic.NonNegativeInt
    sha256: str
    parts: Sequence[ManifestPart] = ()

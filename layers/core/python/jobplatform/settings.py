"""Typed settings, one small group per concern, read from the environment by the functions and
written by `infra`.

Durations are ISO 8601 (`PT60S`) in the environment and `timedelta` in code. `env_for` is the
writing side: it fails at synth time when a name is unknown or a value is missing.
"""

import json
import os
from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated, Any, ClassVar, Literal, Self

import pydantic

Duration = Annotated[timedelta, pydantic.Field(gt=timedelta(0))]


class Settings(pydantic.BaseModel):
    """A group of settings; `prefix` starts the names of its variables."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")
    prefix: ClassVar[str]

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Self:
        """Reads the group; raises `pydantic.ValidationError` naming each wrong variable."""
        environ = os.environ if environ is None else environ
        found: dict[str, Any] = {}
        for name, field in cls.model_fields.items():
            text = environ.get(cls.variable(name), "")
            if text:
                found[name] = json.loads(text) if _is_json(field) else text
        return cls(**found)

    @classmethod
    def variable(cls, name: str) -> str:
        return f"{cls.prefix}{name.upper()}"


def env_for(group: type[Settings], **values: Any) -> dict[str, str]:
    """The environment variables that make `group.from_env` return these values; others keep their
    defaults.

    CDK tokens pass as strings, which is why fields that infra fills from resources are plain `str`.
    """
    unknown = values.keys() - group.model_fields.keys()
    if unknown:
        raise ValueError(f"{group.__name__} has no setting {', '.join(sorted(unknown))}")
    checked = group(**values)
    dumped = checked.model_dump(mode="json", include=set(values))
    return {
        group.variable(name): value if isinstance(value, str) else json.dumps(value)
        for name, value in dumped.items()
        if value is not None
    }


def _is_json(field: pydantic.fields.FieldInfo) -> bool:
    return (field.json_schema_extra or {}) == {"env": "json"}


class DatabaseSettings(Settings):
    """Where the platform's own tables are."""

    prefix: ClassVar[str] = "DATABASE_"

    url: str
    """`postgresql://[user[:password]@]host[:port]/name[?sslmode=disable|require|verify-full]`."""
    secret_arn: str | None = None
    """Secrets Manager secret with `username` and `password`; they win over those in the URL."""
    ca_file: str | None = None
    """PEM file of the certificate authority for `verify-full`; None: the system's."""


class DataDatabaseSettings(Settings):
    """Where the adopter's data is; without a URL it is the platform's own database."""

    prefix: ClassVar[str] = "DATA_DATABASE_"

    url: str | None = None
    secret_arn: str | None = None
    ca_file: str | None = None


class QueueSettings(Settings):
    """The SQS queue of doorbells."""

    prefix: ClassVar[str] = "QUEUE_"

    url: str
    dead_letter_url: str | None = None


class ResultSettings(Settings):
    """The S3 bucket of results."""

    prefix: ClassVar[str] = "RESULTS_"

    bucket: str
    public_endpoint_url: str | None = None
    """S3 as the person who downloads sees it, where that differs from what a function sees
    (LocalStack)."""
    url_ttl: Duration = timedelta(minutes=15)
    """Life of a presigned URL, unless the credentials that sign it end before."""
    ttl: Duration = timedelta(days=7)
    """How long a result can be downloaded after its job succeeded."""
    purge_grace: Duration = timedelta(hours=1)
    """Between the end of a result and its deletion, so that a download under way can be resumed."""
    upload_ttl: Duration = timedelta(hours=24)
    """Age at which the purge ends an upload that no attempt works on."""


class JobSettings(Settings):
    """Times and counts that the life of a job obeys."""

    prefix: ClassVar[str] = "JOBS_"

    retry_delays: Annotated[
        tuple[Duration, ...], pydantic.Field(json_schema_extra={"env": "json"})
    ] = (timedelta(seconds=5), timedelta(seconds=30), timedelta(minutes=2))
    """Wait before each retry of a transient error; as many retries as entries."""
    lease: Duration = timedelta(seconds=60)
    """A running job whose worker has not been heard of for so long belongs to nobody."""
    heartbeat: Duration = timedelta(seconds=2)
    """How often a worker renews its lease and looks whether its job was cancelled."""
    worker_life: Duration = timedelta(minutes=16)
    """After so long no worker can be alive, however lost it is (Lambda ends it after 15)."""
    retention: Duration = timedelta(days=30)
    """Age at which a finished job is purged, counted from its end."""
    idempotency_ttl: Duration = timedelta(hours=24)
    """How long an Idempotency-Key names the job that it made."""
    run_at_grace: Duration = timedelta(seconds=60)
    """How far in the past `run_at` may lie, for clocks that differ."""
    run_at_horizon: Duration = timedelta(days=365)
    """How far in the future `run_at` may lie."""
    ring_again_after: Duration = timedelta(minutes=5)
    """A due job that nobody started is rung for again when its last doorbell is so old."""
    ring_ahead: Duration = timedelta(seconds=75)
    """Jobs due within this time get a delayed doorbell: a dispatcher's interval and a margin (SQS
    allows 900 s)."""


class WorkerSettings(Settings):
    """How a worker invocation spends its time and memory."""

    prefix: ClassVar[str] = "WORKER_"

    statement_timeout: Duration = timedelta(minutes=14, seconds=30)
    """PostgreSQL `statement_timeout` of a query, unless its template or plan sets a shorter one.
    Less than an invocation has, and more than it has before `hand_over_before`: a query that could
    be handed over must not end first."""
    drain_for: Duration = timedelta(seconds=10)
    """After a job, the next is claimed at once while the invocation is younger than this."""
    hand_over_before: Duration = timedelta(seconds=45)
    """A long export is handed to the next invocation when less than this is left of this one: time
    to finish parts, and for the next to start and take over the snapshot."""
    part_bytes: Annotated[int, pydantic.Field(ge=5 * 2**20)] = 8 * 2**20
    """Size of the first parts of an upload, bytes (S3: at least 5 MiB); later ones grow."""
    memory_mb: Annotated[int, pydantic.Field(ge=512, le=10240)] = 2048
    """Memory of the function, MiB. Parts grow up to a third of it, which bounds the size of a
    result."""


WORKER_ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(2**20), "MALLOC_ARENA_MAX": "2"}
"""Variables of glibc that a worker runs with: a part's memory goes back to the system when it is
uploaded, and fewer heaps fragment. Measured: 10 to 30 MB less at the peak, no slower."""


class ApiSettings(Settings):
    """The HTTP surface."""

    prefix: ClassVar[str] = "API_"

    cursor_secret: str = ""
    """Key that signs list cursors; empty: taken from `cursor_secret_arn`."""
    cursor_secret_arn: str | None = None
    max_waits: Annotated[int, pydantic.Field(ge=0)] = 50
    """Requests that may wait for a job's end at once, of all clients together; others are answered
    at once. About half of the function's concurrency, so that the rest is there for the others."""
    version: str = "0.0.0"
    target: Literal["embedded", "localstack", "aws"] = "embedded"


class FaultSettings(Settings):
    """Breaking things on purpose; see `jobplatform.faults`. Refused against AWS itself."""

    prefix: ClassVar[str] = "FAULTS_"

    file: str | None = None
    """Path of the script of faults, shared with the functions' processes; None: no faults."""

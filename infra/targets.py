"""Where the platform can run, as data: each difference between AWS and emulators is a field.

A construct reads the field that concerns it and never asks which target it is in.
"""

import dataclasses
import platform
import sys
from datetime import timedelta
from typing import Literal

Architecture = Literal["arm64", "x86_64"]
LogRetention = Literal["ONE_DAY", "ONE_WEEK", "ONE_MONTH", "THREE_MONTHS", "ONE_YEAR"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ManagedDatabase:
    """An RDS for PostgreSQL instance in a VPC of its own; the functions run in that VPC too."""

    instance_type: str = "t4g.medium"
    version: str = "18.3"
    storage_gib: int = 50
    max_storage_gib: int = 500
    """RDS grows the storage by itself up to this size."""
    multi_az: bool = True
    backup_days: int = 14
    deletion_protection: bool = True
    name: str = "jobplatform"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    name: Literal["embedded", "localstack", "aws"]

    runtime: str
    """Lambda runtime, `python3.N`; also the Python that the wheels are picked for."""
    architecture: Architecture
    wheel_platform: str | None
    """What `uv pip install --python-platform` picks wheels for; None: this machine."""
    merge_layers: bool
    """True: each function's own zip holds the layers, for an emulator that mounts none."""

    database: ManagedDatabase | None
    """None: the database is outside, at `database_url`."""
    database_url: str | None = None
    """Default of the context value `database_url` where the database is outside."""

    worker_concurrency: int
    """Jobs that run at once: maximum concurrency of the worker's event source, 2 to 1000."""
    worker_timeout: timedelta = timedelta(minutes=15)
    api_concurrency: int | None = None
    """Reserved for the API function, which bounds its database connections; None: no limit."""

    log_level: Literal["DEBUG", "INFO", "WARNING"] = "INFO"
    log_retention: LogRetention
    tracing: bool
    alarms: bool
    api_access_logs: bool
    retain_data: bool
    """True: the bucket and the secrets survive the deletion of their stack."""
    faults: bool = False
    """True: the settings `FAULTS_…` are taken; their use is to break things on purpose."""
    public_s3_endpoint: str | None = None
    """S3 as a person who downloads sees it; None: as the functions see it."""


_THIS_PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"
_THIS_MACHINE: Architecture = "arm64" if platform.machine() in ("arm64", "aarch64") else "x86_64"

# These runtimes stand on Amazon Linux 2023 with glibc 2.34: wheels for 2.28 run there.
_LAMBDA_WHEELS = {"arm64": "aarch64-manylinux_2_28", "x86_64": "x86_64-manylinux_2_28"}

AWS = Target(
    name="aws",
    runtime="python3.13",
    architecture="arm64",
    wheel_platform=_LAMBDA_WHEELS["arm64"],
    merge_layers=False,
    database=ManagedDatabase(),
    worker_concurrency=10,
    api_concurrency=100,
    log_retention="THREE_MONTHS",
    tracing=True,
    alarms=True,
    api_access_logs=True,
    retain_data=True,
)

# The functions run in containers of the Lambda images, whose architecture is this machine's.
LOCALSTACK = Target(
    name="localstack",
    runtime="python3.13",
    architecture=_THIS_MACHINE,
    wheel_platform=_LAMBDA_WHEELS[_THIS_MACHINE],
    merge_layers=True,
    database=None,
    database_url="postgresql://jobplatform:jobplatform@postgres:5432/jobplatform?sslmode=disable",
    worker_concurrency=5,
    log_retention="ONE_DAY",
    tracing=False,
    alarms=False,
    api_access_logs=False,
    retain_data=False,
    faults=True,
    public_s3_endpoint="http://127.0.0.1:4566",
)

# The functions run as processes of the emulator's interpreter, which is the one that runs this.
EMBEDDED = Target(
    name="embedded",
    runtime=_THIS_PYTHON,
    architecture=_THIS_MACHINE,
    wheel_platform=None,
    merge_layers=False,
    database=None,
    database_url="postgresql://postgres@127.0.0.1:5432/jobplatform?sslmode=disable",
    worker_concurrency=4,
    log_retention="ONE_DAY",
    tracing=False,
    alarms=False,
    api_access_logs=False,
    retain_data=False,
    faults=True,
)

TARGETS = {target.name: target for target in (EMBEDDED, LOCALSTACK, AWS)}


def target_named(name: str) -> Target:
    for target in TARGETS.values():
        if target.name == name:
            return target
    raise ValueError(
        f"There is no target {name!r}; choose one of {', '.join(TARGETS)} (-c target=NAME)."
    )

"""Typed client of the Async Job Platform: submit a report, wait for it, download it.

The command line (`jobctl`) and the operator's commands (`jobclient.admin`) stand on it; they need
Typer, Rich and boto3, this core needs httpx and pydantic only.
"""

from jobclient import errors
from jobclient.client import Client
from jobclient.downloads import Download
from jobclient.errors import JobClientError
from jobclient.models import (
    Column,
    Health,
    Job,
    JobError,
    Manifest,
    Progress,
    Result,
    SubmittedJob,
    Template,
    Ticket,
)
from jobclient.retries import Retry

__all__ = [
    "Client",
    "Column",
    "Download",
    "Health",
    "Job",
    "JobClientError",
    "JobError",
    "Manifest",
    "Progress",
    "Result",
    "Retry",
    "SubmittedJob",
    "Template",
    "Ticket",
    "errors",
]

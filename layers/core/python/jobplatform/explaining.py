"""Why a job is where it is, in words for an operator: pure, no I/O."""

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any

from jobplatform.jobs import JobStatus


def explain(
    job: Mapping[str, Any], attempts: Sequence[Mapping[str, Any]], *, ahead: int, running: int
) -> str:
    """`job` is its row with the database's time as `now`; `ahead`: due jobs that come first."""
    words = _BY_STATUS[JobStatus(job["status"])](job, attempts, ahead, running)
    if job["dead_letter_at"] is not None:
        words += (
            f" At {_time(job['dead_letter_at'])} a doorbell of it was found among the dead letters;"
            " the dispatcher rang again, and the job itself was never at risk."
        )
    return words


def _queued(
    job: Mapping[str, Any], attempts: Sequence[Mapping[str, Any]], ahead: int, running: int
) -> str:
    now, due = job["now"], job["available_at"]
    if due > now:
        until = f"It waits until {_time(due)}"
        if not attempts:
            return f"{until}, as its run_at says."
        return f"{until} for its next attempt, because: {job['status_reason']}.{_last(attempts)}"
    words = f"It is due since {_time(due)} ({_ago(now - due)}) and no worker has taken it yet. "
    if ahead:
        words += f"{ahead} due jobs of its client come first. "
    words += f"Over all clients {running} jobs run. "
    if job["rung_at"] is None:
        words += "The dispatcher has not rung for it since it became due; it does so every minute."
    else:
        words += f"The dispatcher last rang for it at {_time(job['rung_at'])}."
    if now - due > dt.timedelta(minutes=5):
        words += (
            " If no job makes progress, look at the dispatcher's and the worker's logs, and whether"
            " the worker's event source is enabled and its concurrency is not 0."
        )
    return words + _last(attempts)


def _running(
    job: Mapping[str, Any], attempts: Sequence[Mapping[str, Any]], ahead: int, running: int
) -> str:
    now, lease = job["now"], job["lease_expires_at"]
    current = attempts[-1] if attempts else None
    words = f"Attempt {job['attempts']} runs"
    if current is not None:
        words += f" since {_time(current['started_at'])} in the invocation {current['worker']}"
    words += f"; {job['rows_written']} rows so far."
    if lease < now:
        words += (
            f" Its worker has not been heard of: the lease ended {_ago(now - lease)} ago. The"
            " dispatcher takes the job back within a minute of that; if it does not, look at the"
            " dispatcher's log."
        )
    if job["cancel_requested_at"] is not None:
        words += (
            f" Cancelling was asked for at {_time(job['cancel_requested_at'])}; the worker sees it"
            " at its next heartbeat, and if it is lost the dispatcher ends the job."
        )
    return words


def _succeeded(
    job: Mapping[str, Any], attempts: Sequence[Mapping[str, Any]], ahead: int, running: int
) -> str:
    words = f"Its result was published at {_time(job['finished_at'])}"
    if job["result_deleted_at"] is not None:
        return f"{words} and deleted at {_time(job['result_deleted_at'])}, past its time."
    if job["result_expires_at"] <= job["now"]:
        return f"{words} and expired at {_time(job['result_expires_at'])}; the purge deletes it."
    return f"{words} and can be downloaded until {_time(job['result_expires_at'])}."


def _failed(
    job: Mapping[str, Any], attempts: Sequence[Mapping[str, Any]], ahead: int, running: int
) -> str:
    return (
        f"It failed at {_time(job['finished_at'])} ({job['error_code']}) after"
        f" {job['attempts']} attempts; the customer reads: {job['error_message']!r}."
        f"{_last(attempts)}"
    )


def _cancelled(
    job: Mapping[str, Any], attempts: Sequence[Mapping[str, Any]], ahead: int, running: int
) -> str:
    return f"It was cancelled at {_time(job['finished_at'])}: {job['status_reason']}."


_BY_STATUS = {
    JobStatus.QUEUED: _queued,
    JobStatus.RUNNING: _running,
    JobStatus.SUCCEEDED: _succeeded,
    JobStatus.FAILED: _failed,
    JobStatus.CANCELLED: _cancelled,
}


def _last(attempts: Sequence[Mapping[str, Any]]) -> str:
    """The last line of the last cause that is known: of a traceback, the error itself."""
    for attempt in reversed(attempts):
        if attempt["error_detail"]:
            line = str(attempt["error_detail"]).strip().splitlines()[-1]
            return f" Attempt {attempt['number']} ended with: {line}"
    return ""


def _time(moment: dt.datetime) -> str:
    return moment.astimezone(dt.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _ago(span: dt.timedelta) -> str:
    seconds = int(span.total_seconds())
    if seconds < 120:
        return f"{seconds} s"
    return f"{seconds // 60} min" if seconds < 7200 else f"{seconds // 3600} h"

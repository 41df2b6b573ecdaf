"""What an operator can do, one function a command; `run` finds it by its name."""

import dataclasses
import datetime as dt
import inspect
import typing
import uuid
from collections.abc import Callable, Mapping
from typing import Any

import sqlalchemy as sa

from jobplatform import (
    client_store,
    database,
    errors,
    faults,
    job_store,
    jobs,
    operator_store,
    plans,
    results,
)
from jobplatform.explaining import explain
from jobplatform.observability import logger
from jobplatform.queue import DeadLetters, Queue
from jobplatform.settings import JobSettings, ResultSettings
from jobplatform.usecases import note_dead_letters
from jobplatform.usecases import purge as purging

MOST_JOBS = 1_000
MOST_LETTERS = 1_000
_LETTERS_AT_ONCE = 10
_LETTER_TEXT = 500
_STUCK_FOR = dt.timedelta(minutes=5)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Operator:
    """What the commands work on; `seconds_left` of the invocation that runs one."""

    engine: sa.Engine
    queue: Queue
    dead_letters: DeadLetters
    bucket: results.Bucket
    jobs: JobSettings
    results: ResultSettings
    seconds_left: Callable[[], float]


def run(operator: Operator, command: str, arguments: dict[str, Any]) -> Any:
    """Runs a command. Raises `errors.OperatorError` for one that is not there."""
    function = COMMANDS.get(command) if isinstance(command, str) else None
    if function is None:
        raise errors.OperatorError(
            f"There is no command {command!r}; there are {', '.join(sorted(COMMANDS))}."
        )
    try:
        bound = inspect.signature(function).bind(operator, **arguments)
    except TypeError as error:
        raise errors.OperatorError(f"{command}: {error}") from error
    kinds = typing.get_type_hints(function)
    for name, value in arguments.items():
        if not isinstance(value, kinds[name]) or not _is_text_to_keep(value):
            raise errors.OperatorError(f"{command}: {name} cannot be {value!a}.")
    return function(*bound.args, **bound.kwargs)


def _is_text_to_keep(value: object) -> bool:
    """False for text that PostgreSQL refuses: NUL, or half of a surrogate pair."""
    return not isinstance(value, str) or value.isprintable()


def create_client(operator: Operator, *, name: str) -> dict[str, Any]:
    if not 1 <= len(name) <= 100 or not name.isprintable() or name != name.strip():
        raise errors.OperatorError("A client's name is 1 to 100 printable characters.")
    client_id = jobs.new_id()
    with database.transaction(operator.engine) as conn:
        created_at = client_store.create(conn, client_id=client_id, name=name)
    faults.point("admin.after_commit")
    return {"client_id": client_id, "name": name, "created_at": created_at}


def list_clients(operator: Operator) -> list[dict[str, Any]]:
    with database.transaction(operator.engine) as conn:
        return client_store.list_all(conn)


def add_key(
    operator: Operator, *, client: str, plan: str, key_sha256: str, api_key_id: str
) -> dict[str, Any]:
    if plan not in plans.PLANS:
        raise errors.OperatorError(
            f"There is no plan {plan!r}; there are {', '.join(sorted(plans.PLANS))}."
        )
    try:
        digest = bytes.fromhex(key_sha256)
    except ValueError:
        digest = b""
    if len(digest) != 32:
        raise errors.OperatorError("key_sha256 is not the hexadecimal SHA-256 of a key.")
    with database.transaction(operator.engine) as conn:
        client_id = client_store.resolve(conn, client)
        client_store.add_key(
            conn, client_id=client_id, key_sha256=digest, api_key_id=api_key_id, plan=plan
        )
    faults.point("admin.after_commit")
    return {"client_id": client_id, "api_key_id": api_key_id, "plan": plan}


def revoke_key(operator: Operator, *, api_key_id: str) -> dict[str, Any]:
    with database.transaction(operator.engine) as conn:
        client_store.revoke_key(conn, api_key_id)
    faults.point("admin.after_commit")
    return {"api_key_id": api_key_id}


def remove_client(operator: Operator, *, client: str) -> dict[str, Any]:
    with database.transaction(operator.engine) as conn:
        client_id = client_store.resolve(conn, client)
        api_key_ids = client_store.remove(conn, client_id)
    faults.point("admin.after_commit")
    return {"client_id": client_id, "api_key_ids": api_key_ids}


def list_jobs(
    operator: Operator,
    *,
    status: str | None = None,
    client: str | None = None,
    stuck: bool = False,
    limit: int = 50,
) -> list[dict[str, Any]]:
    """Jobs of every client, newest first; `stuck`: they should have moved on 5 minutes ago."""
    if status is not None and status not in set(jobs.JobStatus):
        raise errors.OperatorError(
            f"There is no status {status!r}; there are {', '.join(jobs.JobStatus)}."
        )
    if not 1 <= limit <= MOST_JOBS:
        raise errors.OperatorError(f"limit is 1 to {MOST_JOBS}.")
    with database.transaction(operator.engine) as conn:
        return operator_store.list_jobs(
            conn,
            status=jobs.JobStatus(status) if status else None,
            client_id=client_store.resolve(conn, client) if client else None,
            stuck_for=_STUCK_FOR if stuck else None,
            limit=limit,
        )


def explain_job(operator: Operator, *, job_id: str) -> dict[str, Any]:
    """Everything that is known of a job, causes included, and in words why it is where it is."""
    with database.transaction(operator.engine) as conn:
        row = operator_store.row_of(conn, _id(job_id))
        if row is None:
            raise errors.JobNotFound(f"There is no job {job_id}; it may have been purged.")
        attempts = job_store.attempts_of(conn, row["id"])
        transitions = job_store.transitions_of(conn, row["id"])
        queue_facts = (operator_store.ahead_of(conn, row["id"]), operator_store.running(conn))
    shown = {name: value for name, value in row.items() if name not in _NOT_SHOWN}
    return {
        "why": explain(row, attempts, ahead=queue_facts[0], running=queue_facts[1]),
        "job": shown,
        "attempts": [_without(attempt, "job_id", "client_id") for attempt in attempts],
        "transitions": [_without(change, "id", "job_id", "client_id") for change in transitions],
    }


_NOT_SHOWN = ("now", "removed_at", "request_hash", "checkpoint")


def _without(row: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in names}


def retry_job(operator: Operator, *, job_id: str) -> dict[str, Any]:
    """Queues a failed or cancelled job again with all its attempts; its history stays."""
    with database.transaction(operator.engine) as conn:
        retried = operator_store.retry(conn, _id(job_id))
        job = job_store.get(conn, _id(job_id))
    if job is None:
        raise errors.JobNotFound(f"There is no job {job_id}; it may have been purged.")
    if not retried:
        raise errors.JobNotRetryable(
            f"The job is {job.status}. Only a failed or cancelled job can be tried again, and none"
            " of a client that was removed."
        )
    faults.point("retry.after_commit")
    _ring(operator, job.id)
    return {"job_id": job.id, "status": job.status}


def _ring(operator: Operator, job_id: uuid.UUID) -> None:
    try:
        operator.queue.ring(job_id)
    except Exception:
        # The dispatcher rings for every job that nobody started.
        logger.exception("doorbell not rung", job_id=str(job_id))


def cancel_job(operator: Operator, *, job_id: str) -> dict[str, Any]:
    """A queued job ends at once, a running one within seconds."""
    with database.transaction(operator.engine) as conn:
        job = job_store.cancel(
            conn, _id(job_id), client_id=None, retention=operator.jobs.retention
        ) or job_store.get(conn, _id(job_id))
    if job is None:
        raise errors.JobNotFound(f"There is no job {job_id}; it may have been purged.")
    if job.status in (jobs.JobStatus.SUCCEEDED, jobs.JobStatus.FAILED):
        raise errors.JobNotCancellable(f"The job has already ended: it {job.status}.")
    faults.point("cancel.after_commit")
    return {
        "job_id": job.id,
        "status": job.status,
        "cancel_requested_at": job.cancel_requested_at,
    }


def list_dead_letters(operator: Operator, *, limit: int = 100) -> list[dict[str, Any]]:
    """Looks at dead letters and leaves them where they are."""
    if not 1 <= limit <= MOST_LETTERS:
        raise errors.OperatorError(f"limit is 1 to {MOST_LETTERS}.")
    letters = operator.dead_letters.look(limit=limit)
    note_dead_letters.note(operator.engine, letters)
    with database.transaction(operator.engine) as conn:
        ids = [letter.job_id for letter in letters if letter.job_id]
        statuses = operator_store.statuses(conn, ids)
    return [
        {
            "message_id": letter.id,
            "sent_at": letter.sent_at,
            "deliveries": letter.deliveries,
            "job_id": letter.job_id,
            "job_status": statuses.get(letter.job_id) if letter.job_id else None,
            "body": letter.body[:_LETTER_TEXT],
        }
        for letter in sorted(letters, key=lambda letter: letter.sent_at)
    ]


def redrive_dead_letters(operator: Operator) -> dict[str, Any]:
    """Sends each dead letter to the queue again, then deletes it: twice is harmless."""

    def send(letter: Any) -> None:
        operator.queue.send(letter.body)
        faults.point("redrive.sent")

    return {"redriven": _dispose(operator, send), "left": operator.dead_letters.count()}


def drop_dead_letters(operator: Operator) -> dict[str, Any]:
    """Deletes the dead letters. A doorbell is no job: the dispatcher rings for every job anew."""
    return {"dropped": _dispose(operator), "left": operator.dead_letters.count()}


def _dispose(operator: Operator, action: Callable[[Any], None] = lambda letter: None) -> int:
    """A few at a time, so that what is in hand is small whenever this is interrupted."""
    seen: set[str] = set()
    done = 0
    while len(seen) < MOST_LETTERS and operator.seconds_left() > 10:
        letters = operator.dead_letters.take(limit=_LETTERS_AT_ONCE)
        # What was redriven may come back while this runs.
        letters = [letter for letter in letters if letter.id not in seen]
        if not letters:
            break
        seen |= {letter.id for letter in letters}
        note_dead_letters.note(operator.engine, letters)
        for letter in letters:
            action(letter)
        done += operator.dead_letters.delete(letters)
    return done


def purge(operator: Operator, *, dry_run: bool) -> dict[str, Any]:
    """What the daily purge does, now; with `dry_run` only how much it would be.

    `complete` is False where the time of one invocation was not enough: run it again.
    """
    if dry_run:
        with database.transaction(operator.engine) as conn:
            counts = operator_store.purgeable(conn, grace=operator.results.purge_grace)
        return {"dry_run": True, **counts}
    done = purging.purge(
        engine=operator.engine,
        bucket=operator.bucket,
        settings=operator.jobs,
        result_settings=operator.results,
        now=dt.datetime.now(dt.UTC),
        seconds_left=operator.seconds_left,
    )
    return {"dry_run": False, **dataclasses.asdict(done)}


def _id(text: str) -> uuid.UUID:
    try:
        return uuid.UUID(text)
    except ValueError as error:
        raise errors.JobNotFound(f"{text!r} is not the id of a job.") from error


COMMANDS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        create_client,
        list_clients,
        add_key,
        revoke_key,
        remove_client,
        list_jobs,
        explain_job,
        retry_job,
        cancel_job,
        list_dead_letters,
        redrive_dead_letters,
        drop_dead_letters,
        purge,
    )
}

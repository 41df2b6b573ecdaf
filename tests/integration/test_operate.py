"""What an operator sees and does, on a real PostgreSQL and moto's SQS and S3."""

import datetime as dt
import json
import re
import uuid
from typing import Any

import boto3
import pytest
import sqlalchemy as sa

from jobplatform import client_store, database, errors, job_store, jobs, settings
from jobplatform import queue as queues
from jobplatform.usecases import operate, ring_due_jobs, run_job
from tests.helpers import platform

DELAYS = settings.JobSettings().retry_delays


@pytest.fixture
def dead_letters(queue: queues.Queue) -> queues.DeadLetters:
    client = boto3.client("sqs")
    return queues.DeadLetters(client, client.create_queue(QueueName="dead")["QueueUrl"])


@pytest.fixture
def operator(worker: run_job.Worker, dead_letters: queues.DeadLetters) -> operate.Operator:
    return operate.Operator(
        engine=worker.engine,
        queue=worker.queue,
        dead_letters=dead_letters,
        bucket=worker.bucket,
        jobs=worker.jobs,
        results=worker.results,
        seconds_left=lambda: 60.0,
    )


def tick(operator: operate.Operator) -> ring_due_jobs.Tick:
    return ring_due_jobs.ring_due_jobs(
        engine=operator.engine,
        queue=operator.queue,
        dead_letters=operator.dead_letters,
        bucket=operator.bucket,
        settings=operator.jobs,
    )


def run(operator: operate.Operator, command: str, **arguments: Any) -> Any:
    """As the function does it: what comes out has to become JSON."""
    result = operate.run(operator, command, arguments)
    return json.loads(json.dumps(result, default=str))


def execute(operator: operate.Operator, statement: str, job: jobs.Job, **values: Any) -> None:
    with database.transaction(operator.engine) as conn:
        conn.execute(sa.text(f"{statement} WHERE id = :id"), {"id": job.id, **values})


def fail(worker: run_job.Worker, job: jobs.Job, detail: str = "ValueError: column x") -> None:
    token = uuid.uuid4()
    with database.transaction(worker.engine) as conn:
        claimed = job_store.claim(
            conn, token=token, worker="w-1", lease=dt.timedelta(seconds=60), weights={}
        )
        assert claimed is not None
        assert claimed.id == job.id
        job_store.end(
            conn,
            job.id,
            token=token,
            status=jobs.JobStatus.FAILED,
            reason="internal_error",
            retention=worker.jobs.retention,
            error_code="internal_error",
            error_message="The report could not be made.",
        )
        job_store.close_attempt(
            conn, token, outcome="failed", error_code="internal_error", error_detail=detail
        )


def messages(queue: queues.Queue) -> list[str]:
    """Takes every visible message."""
    client, found = boto3.client("sqs"), []
    while got := client.receive_message(QueueUrl=queue.url, MaxNumberOfMessages=10).get("Messages"):
        found += [message["Body"] for message in got]
    return found


def park(dead_letters: queues.DeadLetters, body: str) -> None:
    boto3.client("sqs").send_message(QueueUrl=dead_letters.url, MessageBody=body)


def test_jobs_are_listed_by_status_and_client_newest_first(
    operator: operate.Operator, worker: run_job.Worker, client_id: uuid.UUID
) -> None:
    with database.transaction(operator.engine) as conn:
        client_store.create(conn, client_id=(other := jobs.new_id()), name="other")
    first = platform.submit(worker, client_id, "flights", {"carrier": "OO"})
    second = platform.submit(worker, client_id, "flights")
    platform.submit(worker, other, "flights")
    fail(worker, first)

    assert len(run(operator, "list_jobs")) == 3
    assert [job["job_id"] for job in run(operator, "list_jobs", client="acme")] == [
        str(second.id),
        str(first.id),
    ]
    (failed,) = run(operator, "list_jobs", status="failed", client=str(client_id))
    assert failed["job_id"] == str(first.id)
    assert failed["client"] == "acme"
    assert failed["error_code"] == "internal_error"
    assert len(run(operator, "list_jobs", limit=1)) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"status": "done"}, "queued, running, succeeded, failed, cancelled"),
        ({"limit": 0}, "1 to 1000"),
        ({"client": "nobody"}, "no active client nobody"),
        ({"statuss": "failed"}, "statuss"),
    ],
)
def test_wrong_arguments_are_answered_with_what_there_is(
    operator: operate.Operator, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(errors.OperatorError, match=message):
        run(operator, "list_jobs", **arguments)


def test_a_command_that_is_not_there_is_answered_with_those_that_are(
    operator: operate.Operator,
) -> None:
    with pytest.raises(errors.OperatorError, match="explain_job"):
        run(operator, "explain")


def test_stuck_are_those_that_should_have_moved_on(
    operator: operate.Operator, worker: run_job.Worker, client_id: uuid.UUID
) -> None:
    fresh = platform.submit(worker, client_id, "flights")
    waiting = platform.submit(worker, client_id, "flights")
    scheduled = platform.submit(
        worker, client_id, "flights", run_at=dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)
    )
    execute(
        operator, "UPDATE jobplatform.jobs SET available_at = now() - '6 min'::interval", waiting
    )
    with database.transaction(operator.engine) as conn:
        lost = job_store.claim(
            conn,
            token=uuid.uuid4(),
            worker="w-1",
            lease=dt.timedelta(minutes=-6),
            weights={},
        )
    assert lost is not None
    assert lost.id == waiting.id
    execute(operator, "UPDATE jobplatform.jobs SET available_at = now() - '6 min'::interval", fresh)

    stuck = run(operator, "list_jobs", stuck=True)

    assert {job["job_id"] for job in stuck} == {str(fresh.id), str(waiting.id)}
    assert str(scheduled.id) not in {job["job_id"] for job in stuck}


def test_the_cause_is_for_the_operator_and_a_safe_message_for_the_customer(
    operator: operate.Operator, worker: run_job.Worker, client_id: uuid.UUID
) -> None:
    job = platform.submit(worker, client_id, "flights")
    cause = 'Traceback…\nDatabaseError: relation "secret_table" at db-1.internal is missing'
    fail(worker, job, cause)

    explained = run(operator, "explain_job", job_id=str(job.id))

    assert "secret_table" in explained["why"]
    assert "The report could not be made." in explained["why"]
    assert explained["attempts"][0]["worker"] == "w-1"
    assert explained["attempts"][0]["error_detail"] == cause
    assert [
        (change["from_status"], change["to_status"]) for change in explained["transitions"]
    ] == [("queued", "running"), ("running", "failed")]
    assert "secret_table" not in str(platform.get(worker, job))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            "UPDATE jobplatform.jobs SET available_at = now() + '1 h'::interval",
            "as its run_at says",
        ),
        ("UPDATE jobplatform.jobs SET rung_at = NULL", "no worker has taken it yet"),
        ("UPDATE jobplatform.jobs SET rung_at = now()", "The dispatcher last rang for it"),
        (
            "UPDATE jobplatform.jobs SET available_at = now() - '1 h'::interval",
            "whether the worker's event source is enabled",
        ),
        ("UPDATE jobplatform.jobs SET dead_letter_at = now()", "dead letters"),
    ],
)
def test_why_a_job_waits_is_said_in_words(
    operator: operate.Operator,
    worker: run_job.Worker,
    client_id: uuid.UUID,
    change: str,
    words: str,
) -> None:
    job = platform.submit(worker, client_id, "flights")
    execute(operator, change, job)

    assert words in run(operator, "explain_job", job_id=str(job.id))["why"]


def test_why_a_job_runs_or_ended_is_said_in_words(
    operator: operate.Operator, worker: run_job.Worker, client_id: uuid.UUID
) -> None:
    def why(job: jobs.Job) -> str:
        return str(run(operator, "explain_job", job_id=str(job.id))["why"])

    job = platform.submit(worker, client_id, "flights", {"carrier": "OO"})
    platform.run(worker, job)
    assert "can be downloaded until" in why(job)
    execute(operator, "UPDATE jobplatform.jobs SET result_expires_at = now()", job)
    assert "the purge deletes it" in why(job)
    execute(operator, "UPDATE jobplatform.jobs SET result_deleted_at = now()", job)
    assert "deleted at" in why(job)

    lost = platform.submit(worker, client_id, "flights")
    with database.transaction(operator.engine) as conn:
        lease = dt.timedelta(minutes=-1)
        job_store.claim(conn, token=uuid.uuid4(), worker="w-1", lease=lease, weights={})
    run(operator, "cancel_job", job_id=str(lost.id))
    assert re.search(r"the lease ended \d\d+ s ago", why(lost))
    assert "Cancelling was asked for" in why(lost)
    tick(operator)
    assert "It was cancelled" in why(lost)

    retried = platform.submit(worker, client_id, "flights")
    with database.transaction(operator.engine) as conn:
        job_store.claim(conn, token=uuid.uuid4(), worker="w-1", lease=lease, weights={})
    tick(operator)
    assert "for its next attempt, because: worker lost" in why(retried)


@pytest.mark.parametrize("job_id", ["x", str(uuid.UUID(int=1))])
@pytest.mark.parametrize("command", ["explain_job", "retry_job", "cancel_job"])
def test_a_job_that_is_not_there_is_said_to_be_so(
    operator: operate.Operator, command: str, job_id: str
) -> None:
    with pytest.raises(errors.JobNotFound, match=job_id):
        run(operator, command, job_id=job_id)


def test_a_failed_job_is_tried_again_with_all_its_attempts_and_its_history(
    operator: operate.Operator, worker: run_job.Worker, client_id: uuid.UUID
) -> None:
    job = platform.submit(worker, client_id, "flights", {"carrier": "OO"})
    fail(worker, job)
    messages(worker.queue)

    assert run(operator, "retry_job", job_id=str(job.id))["status"] == "queued"

    assert [queues.parse(body) for body in messages(worker.queue)] == [job.id]
    queued = platform.get(worker, job)
    assert (queued.attempts, queued.error_code, queued.error_message) == (0, None, None)
    done = platform.run(worker, job)
    assert done.status is jobs.JobStatus.SUCCEEDED
    explained = run(operator, "explain_job", job_id=str(job.id))
    assert [attempt["outcome"] for attempt in explained["attempts"]] == ["failed", "published"]
    assert [change["to_status"] for change in explained["transitions"]] == [
        "running",
        "failed",
        "queued",
        "running",
        "succeeded",
    ]


def test_a_cancelled_job_can_be_tried_again(
    operator: operate.Operator, worker: run_job.Worker, client_id: uuid.UUID
) -> None:
    job = platform.submit(worker, client_id, "flights", {"carrier": "OO"})
    assert run(operator, "cancel_job", job_id=str(job.id))["status"] == "cancelled"
    assert run(operator, "cancel_job", job_id=str(job.id))["status"] == "cancelled"

    run(operator, "retry_job", job_id=str(job.id))

    assert platform.run(worker, job).status is jobs.JobStatus.SUCCEEDED


def test_only_failed_and_cancelled_jobs_of_active_clients_are_tried_again(
    operator: operate.Operator, worker: run_job.Worker, client_id: uuid.UUID
) -> None:
    queued = platform.submit(worker, client_id, "flights", {"carrier": "OO"})
    with pytest.raises(errors.JobNotRetryable, match="The job is queued"):
        run(operator, "retry_job", job_id=str(queued.id))
    platform.run(worker, queued)
    with pytest.raises(errors.JobNotRetryable, match="The job is succeeded"):
        run(operator, "retry_job", job_id=str(queued.id))
    with pytest.raises(errors.JobNotCancellable, match="it succeeded"):
        run(operator, "cancel_job", job_id=str(queued.id))

    failed = platform.submit(worker, client_id, "flights")
    fail(worker, failed)
    run(operator, "remove_client", client="acme")
    with pytest.raises(errors.JobNotRetryable, match="client that was removed"):
        run(operator, "retry_job", job_id=str(failed.id))


def test_looking_at_dead_letters_leaves_them_and_shows_them_on_their_jobs(
    operator: operate.Operator,
    worker: run_job.Worker,
    dead_letters: queues.DeadLetters,
    client_id: uuid.UUID,
) -> None:
    job = platform.submit(worker, client_id, "flights")
    park(dead_letters, queues.body(job.id))
    park(dead_letters, "no doorbell")

    for _ in range(2):
        letters = run(operator, "list_dead_letters")
        assert {(letter["job_id"], letter["job_status"]) for letter in letters} == {
            (str(job.id), "queued"),
            (None, None),
        }
        assert {letter["body"] for letter in letters} == {queues.body(job.id), "no doorbell"}

    assert platform.get(worker, job).dead_letter_at is not None


def test_the_dispatcher_sees_a_dead_letter_once_and_rings_again(
    operator: operate.Operator,
    worker: run_job.Worker,
    dead_letters: queues.DeadLetters,
    client_id: uuid.UUID,
) -> None:
    job = platform.submit(worker, client_id, "flights")
    execute(
        operator,
        "UPDATE jobplatform.jobs SET rung_at = now(), created_at = now() - '1 min'::interval",
        job,
    )
    park(dead_letters, queues.body(job.id))
    messages(worker.queue)

    first, second = tick(operator), tick(operator)

    assert (first.dead_letters, first.rung) == (1, 1)
    assert (second.dead_letters, second.rung) == (0, 0)
    assert [queues.parse(body) for body in messages(worker.queue)] == [job.id]
    assert platform.get(worker, job).dead_letter_at is not None
    assert dead_letters.count() == 1


def test_dead_letters_are_redriven_as_they_were(
    operator: operate.Operator, worker: run_job.Worker, dead_letters: queues.DeadLetters
) -> None:
    bodies = [queues.body(uuid.uuid4()) for _ in range(24)] + ["of a newer version"]
    for body in bodies:
        park(dead_letters, body)

    assert run(operator, "redrive_dead_letters") == {"redriven": 25, "left": 0}

    assert sorted(messages(worker.queue)) == sorted(bodies)
    assert run(operator, "list_dead_letters") == []


def test_dead_letters_are_dropped_but_their_jobs_know(
    operator: operate.Operator,
    worker: run_job.Worker,
    dead_letters: queues.DeadLetters,
    client_id: uuid.UUID,
) -> None:
    job = platform.submit(worker, client_id, "flights", {"carrier": "OO"})
    park(dead_letters, queues.body(job.id))
    messages(worker.queue)

    assert run(operator, "drop_dead_letters") == {"dropped": 1, "left": 0}

    assert messages(worker.queue) == []
    assert platform.get(worker, job).dead_letter_at is not None
    assert platform.run(worker, job).status is jobs.JobStatus.SUCCEEDED


def test_without_time_nothing_is_taken_in_hand(
    operator: operate.Operator, dead_letters: queues.DeadLetters
) -> None:
    park(dead_letters, "no doorbell")
    hurried = operate.Operator(
        **{
            **{name: getattr(operator, name) for name in operator.__dataclass_fields__},
            "seconds_left": lambda: 5.0,
        }
    )

    assert run(hurried, "drop_dead_letters") == {"dropped": 0, "left": 1}


def test_a_dry_purge_counts_what_a_purge_then_takes(
    operator: operate.Operator, worker: run_job.Worker, client_id: uuid.UUID
) -> None:
    old = platform.submit(worker, client_id, "flights", {"carrier": "OO"}, key="one")
    platform.run(worker, old)
    kept = platform.submit(worker, client_id, "flights", {"carrier": "OO"}, key="two")
    platform.run(worker, kept)
    execute(
        operator,
        "UPDATE jobplatform.jobs SET expires_at = now(), idempotency_expires_at = now(),"
        " result_expires_at = now() - '2 h'::interval",
        old,
    )

    counted = run(operator, "purge", dry_run=True)
    assert counted == {
        "dry_run": True,
        "results": 1,
        "attempts": 0,
        "keys": 1,
        "jobs": 1,
        "clients": 0,
    }
    assert run(operator, "purge", dry_run=True) == counted

    done = run(operator, "purge", dry_run=False)
    assert {name: done[name] for name in ("results", "keys", "jobs", "clients")} == {
        name: counted[name] for name in ("results", "keys", "jobs", "clients")
    }
    assert done["complete"] is True
    with pytest.raises(errors.JobNotFound):
        run(operator, "explain_job", job_id=str(old.id))
    assert platform.get(worker, kept).result is not None

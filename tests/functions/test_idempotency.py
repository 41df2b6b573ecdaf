"""One client and one Idempotency-Key make one job, whatever happens."""

import datetime as dt
import itertools
import json
import uuid
from collections import Counter
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event

from functions.api import resources
from functions.dispatcher import handler as dispatcher
from jobplatform import client_store, job_store, jobs, plans, queue
from jobplatform import settings as groups
from jobplatform.usecases import submit_job
from tests.helpers import lambdas, processes, store
from tests.helpers.api import Answer, Api, count_jobs
from tests.helpers.events import load_event
from tests.helpers.platform import Context

DAY = dt.timedelta(days=1)


def is_replay(answer: Answer) -> bool:
    return answer.headers.get("idempotent-replayed") == "true"


def test_same_key_and_body_is_the_same_job(api: Api, queue: queue.Queue) -> None:
    first = api.submit(idempotency_key="k", parameters={"carrier": "UA"})
    second = api.submit(idempotency_key="k", parameters={"carrier": "UA"})

    assert (first.status, second.status) == (202, 202)
    assert (is_replay(first), is_replay(second)) == (False, True)
    assert first.json == second.json
    assert second.headers["location"] == first.headers["location"]
    assert count_jobs(api.engine) == 1
    assert len(doorbells(queue)) == 1


def test_replay_shows_the_job_as_it_is_now(api: Api) -> None:
    job_id = api.submit(idempotency_key="k").json["id"]

    running = store.claim(api.engine)
    assert running is not None
    assert api.submit(idempotency_key="k").json["status"] == "running"

    store.publish(api.engine, running)
    ended = api.submit(idempotency_key="k")
    assert is_replay(ended)
    assert (ended.status, ended.json["id"], ended.json["status"]) == (202, job_id, "succeeded")
    assert ended.json["links"]["download"] == f"/jobs/{job_id}/download"


def test_replay_of_a_job_that_was_cancelled_does_not_revive_it(api: Api) -> None:
    job_id = api.submit(idempotency_key="k").json["id"]
    store.cancel(api.engine, uuid.UUID(job_id))

    assert api.submit(idempotency_key="k").json["status"] == "cancelled"
    assert count_jobs(api.engine) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"parameters": {"carrier": "AA"}},
        {"parameters": {"carrier": "UA", "origin": "JFK"}},
        {"metadata": {"a": 1}},
        {"format": "jsonl"},
        {"compression": "gzip"},
        {"run_at": (dt.datetime.now(dt.UTC) + DAY).isoformat()},
        {"template": "delays_by_carrier", "parameters": {}},
        {"parameters": {"carrier": "not a carrier"}},
    ],
    ids=lambda change: ",".join(change),
)
def test_same_key_and_another_body_is_refused(api: Api, change: dict[str, Any]) -> None:
    body = {"template": "flights", "parameters": {"carrier": "UA"}}
    first = api.submit(idempotency_key="k", **body)

    other = api.submit(idempotency_key="k", **{**body, **change})

    assert (other.status, other.code) == (422, "idempotency_key_reused")
    assert "id" not in other.json
    assert api.submit(idempotency_key="k", **body).json == first.json
    assert count_jobs(api.engine) == 1


def test_order_and_spaces_of_the_body_do_not_matter(api: Api) -> None:
    run_at = dt.datetime.now(dt.UTC).replace(microsecond=0) + DAY
    elsewhere = run_at.astimezone(dt.timezone(dt.timedelta(hours=9)))
    spellings = (
        '{"template_name": "flights", "parameters": {"carrier": "UA", "origin": "JFK"},'
        f'"run_at": "{run_at.isoformat()}"}}',
        f'{{"run_at":"{elsewhere.isoformat()}",\n"parameters": {{"origin":"JFK","carrier":"UA"}},'
        '"template_name":"flights"}',
    )

    first, second = (
        api.call("POST", "/jobs", body=body, headers={"Idempotency-Key": "k"}) for body in spellings
    )

    assert is_replay(second)
    assert second.json["id"] == first.json["id"]


def test_without_a_key_every_request_is_a_job(api: Api) -> None:
    assert api.submit().json["id"] != api.submit().json["id"]
    assert count_jobs(api.engine) == 2


def test_keys_are_case_sensitive_and_compared_whole(api: Api) -> None:
    ids = {api.submit(idempotency_key=key).json["id"] for key in ("k", "K", "k ", "kk")}

    assert len(ids) == 4


def test_key_of_another_client_is_another_key(api: Api) -> None:
    other = api.new_client("other")
    mine = api.submit(idempotency_key="k", parameters={"carrier": "UA"})

    theirs = api.submit(idempotency_key="k", parameters={"carrier": "AA"}, key=other)

    assert (theirs.status, is_replay(theirs)) == (202, False)
    assert theirs.json["id"] != mine.json["id"]


def test_key_is_the_clients_not_that_of_one_api_key(api: Api) -> None:
    rotated = api.new_key(api.client_id)
    first = api.submit(idempotency_key="k")

    second = api.submit(idempotency_key="k", key=rotated)

    assert is_replay(second)
    assert second.json["id"] == first.json["id"]


def test_replay_works_when_the_client_may_queue_no_more(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(plans.PLANS, "tiny", plans.Plan(**{**vars(plans.BASIC), "max_queued": 1}))
    key = api.new_key(api.client_id, plan="tiny")
    first = api.submit(idempotency_key="k", key=key)

    assert api.submit(idempotency_key="other", key=key).status == 429
    again = api.submit(idempotency_key="k", key=key)
    assert (again.status, again.json) == (202, first.json)
    assert api.submit(idempotency_key="k", format="jsonl", key=key).code == "idempotency_key_reused"


def test_refused_for_the_plans_limit_the_key_is_free_for_later(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(plans.PLANS, "tiny", plans.Plan(**{**vars(plans.BASIC), "max_queued": 1}))
    key = api.new_key(api.client_id, plan="tiny")
    first = api.submit(key=key).json
    assert api.submit(idempotency_key="k", key=key).status == 429

    store.cancel(api.engine, uuid.UUID(first["id"]))

    later = api.submit(idempotency_key="k", key=key)
    assert (later.status, is_replay(later)) == (202, False)


def test_replay_is_not_refused_because_its_run_at_has_passed_meanwhile(api: Api) -> None:
    run_at = dt.datetime.now(dt.UTC) + dt.timedelta(minutes=5)
    body = {"run_at": run_at.isoformat()}
    first = api.submit(idempotency_key="k", **body)

    later = run_at + dt.timedelta(minutes=10)
    job, replayed = submit(api, key="k", run_at=run_at, now=later)

    assert replayed
    assert str(job.id) == first.json["id"]


def test_replay_is_not_refused_because_the_template_is_gone(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = api.submit(idempotency_key="k")
    monkeypatch.setattr("jobplatform.templating._names", lambda folders: ())

    again = api.submit(idempotency_key="k")

    assert is_replay(again)
    assert again.json["id"] == first.json["id"]
    assert api.submit(idempotency_key="new").code == "invalid_request"


def test_key_names_its_job_for_24_hours_and_then_another(api: Api) -> None:
    first = api.submit(idempotency_key="k").json
    job_id = uuid.UUID(first["id"])
    store.age(api.engine, DAY - dt.timedelta(minutes=1), job_id)
    assert api.submit(idempotency_key="k").json["id"] == first["id"]

    store.age(api.engine, dt.timedelta(minutes=2), job_id)

    later = api.submit(idempotency_key="k", parameters={"carrier": "AA"})
    assert (later.status, is_replay(later)) == (202, False)
    assert later.json["id"] != first["id"]
    assert api.call("GET", f"/jobs/{first['id']}").status == 200, "the job itself stays"
    assert count_jobs(api.engine) == 2


@processes.FORKS
def test_fifty_requests_at_once_with_one_key_make_one_job(api: Api) -> None:
    answers = processes.at_once(50, lambda: seen(api.submit(idempotency_key="k")))

    assert {status for status, _, _ in answers} == {202}
    assert len({job_id for _, job_id, _ in answers}) == 1
    assert Counter(replayed for _, _, replayed in answers) == {True: 49, False: 1}
    assert count_jobs(api.engine) == 1


@processes.FORKS
def test_fifty_requests_at_once_with_two_bodies_are_one_job_and_refusals(api: Api) -> None:
    bodies = itertools.cycle([{"carrier": "UA"}, {"carrier": "AA"}])

    def one_of_two() -> Any:
        return seen(api.submit(idempotency_key="k", parameters=parameters[uuid.uuid4().int % 2]))

    parameters = [next(bodies), next(bodies)]
    answers = processes.at_once(50, one_of_two)

    assert {status for status, _, _ in answers} <= {202, 422}
    assert len({job_id for status, job_id, _ in answers if status == 202}) == 1
    assert {job_id for status, job_id, _ in answers if status == 422} <= {"idempotency_key_reused"}
    assert count_jobs(api.engine) == 1


def test_fifty_requests_at_once_as_the_key_ends_make_one_new_job(api: Api) -> None:
    """Some find the old key, some are releasing it: none may take that for a full queue."""
    old = uuid.UUID(api.submit(idempotency_key="k").json["id"])
    store.age(api.engine, DAY + dt.timedelta(seconds=1), old)

    found = store.at_once([lambda: submit(api, key="k")] * 50)

    assert len({job.id for job, _ in found}) == 1
    assert Counter(replayed for _, replayed in found) == {True: 49, False: 1}
    assert count_jobs(api.engine) == 2


def test_key_that_somebody_else_released_a_moment_before_is_no_full_queue(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same race, made to happen between two statements."""
    old = uuid.UUID(api.submit(idempotency_key="k").json["id"])
    store.age(api.engine, DAY + dt.timedelta(seconds=1), old)
    release = job_store.release_expired_key
    winners: list[jobs.Job] = []

    def release_after_another(*args: Any) -> bool:
        monkeypatch.setattr("jobplatform.job_store.release_expired_key", release)
        winners.append(submit(api, key="k")[0])
        return release(*args)

    monkeypatch.setattr("jobplatform.job_store.release_expired_key", release_after_another)

    answer = api.submit(idempotency_key="k")

    assert (answer.status, is_replay(answer)) == (202, True)
    assert [str(winner.id) for winner in winners] == [answer.json["id"]]
    assert count_jobs(api.engine) == 2


def test_fifty_clients_at_once_do_not_hold_each_other(api: Api) -> None:
    callers = [
        resources.caller(api.new_client(f"client {number}")).client_id for number in range(50)
    ]

    found = store.at_once(
        [
            lambda client_id=client_id: submit(api, key="k", client_id=client_id)  # type: ignore[misc]
            for client_id in callers
        ]
    )

    assert not any(replayed for _, replayed in found)
    assert count_jobs(api.engine) == 50


def test_connection_that_died_between_requests_is_not_noticed(api: Api) -> None:
    api.submit(idempotency_key="a")

    kill_connections(api.engine)

    assert api.submit(idempotency_key="b").status == 202


STEPS = ("begin", "before_cursor_execute", "after_cursor_execute", "commit", "rollback")


@pytest.mark.parametrize("known", [True, False], ids=["replay", "new key"])
def test_connection_lost_before_and_after_any_statement_leaves_nothing_stuck(
    api: Api, known: bool
) -> None:
    """The request may fail; the same request sent again is accepted, and there is one job."""
    for step in range(1, 40):
        api.submit()  # the caller is known and the connection open, as in the middle of a day
        jobs_before = count_jobs(api.engine)
        key = f"key {step}"
        if known:
            api.submit(idempotency_key=key)

        with KillAt(api.engine, step) as killer:
            first = api.submit(idempotency_key=key)
        again = api.submit(idempotency_key=key)

        assert first.status in (202, 503), killer.happened
        assert again.status == 202, killer.happened
        assert first.status == 503 or first.json == again.json
        assert count_jobs(api.engine) == jobs_before + 1
        if not killer.fired:
            assert first.status == 202
            break
    assert step > 4, "there are some statements to die at"
    assert not killer.fired


def test_answer_to_the_commit_that_is_lost_leaves_nothing_stuck(api: Api) -> None:
    """The worst moment: the job is there and its client was told nothing."""
    api.submit()

    with store.answer_lost("INSERT INTO jobplatform.jobs"):
        first = api.submit(idempotency_key="k")
    again = api.submit(idempotency_key="k")

    assert (first.status, first.code) == (503, "service_unavailable")
    assert (again.status, is_replay(again)) == (202, True)
    assert count_jobs(api.engine) == 2


def test_submit_while_sqs_is_down_is_accepted_and_the_dispatcher_rings(
    api: Api, queue: queue.Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise OSError("SQS is away")

    with monkeypatch.context() as patch:
        patch.setattr("jobplatform.queue.Queue.ring", fail)
        answer = api.submit(idempotency_key="k")
    assert (answer.status, is_replay(answer)) == (202, False)
    assert doorbells(queue) == []

    store.age(api.engine, dt.timedelta(seconds=10))
    ticked = dispatcher.lambda_handler(load_event("dispatcher_every_minute"), Context())

    assert ticked["rung"] == 1
    assert doorbells(queue) == [answer.json["id"]]


def test_crash_between_the_commit_and_the_doorbell_loses_nothing(
    api: Api, queue: queue.Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def die(*args: object, **kwargs: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("jobplatform.queue.Queue.ring", die)
        with pytest.raises(Killed):
            api.submit(idempotency_key="k")
    lambdas.start_anew()

    again = api.submit(idempotency_key="k")

    assert (again.status, is_replay(again)) == (202, True)
    store.age(api.engine, dt.timedelta(seconds=10))
    dispatcher.lambda_handler(load_event("dispatcher_every_minute"), Context())
    assert doorbells(queue) == [again.json["id"]]


def test_submit_is_one_statement_and_one_doorbell(api: Api, queue: queue.Queue) -> None:
    """The budget that submit's speed stands on."""
    api.submit()
    doorbells(queue)
    statements: list[str] = []

    @event.listens_for(resources.get().engine, "before_cursor_execute")
    def note(conn: Any, cursor: Any, statement: str, *rest: Any) -> None:
        statements.append(statement)

    api.submit(idempotency_key="k")
    assert len(statements) == 1
    assert len(doorbells(queue)) == 2

    statements.clear()
    api.submit(idempotency_key="k")
    assert len(statements) == 2, "a replay looks its job up"
    assert len(doorbells(queue)) == 2


def seen(answer: Answer) -> tuple[int, str | None, bool]:
    return int(answer.status), answer.json.get("id") or answer.code, is_replay(answer)


def submit(
    api: Api,
    *,
    key: str,
    client_id: uuid.UUID | None = None,
    run_at: dt.datetime | None = None,
    now: dt.datetime | None = None,
) -> tuple[jobs.Job, bool]:
    """The use case as the route calls it, which threads may do at the same time."""
    got = resources.get()
    return submit_job.submit_job(
        caller=client_store.Caller(client_id or api.client_id, "pro"),
        template_name="flights",
        parameters={},
        metadata={},
        run_at=run_at,
        format=jobs.ResultFormat.CSV,
        compression=jobs.Compression.NONE,
        idempotency_key=key,
        engine=got.engine,
        queue=got.queue,
        settings=groups.JobSettings(),
        now=now or dt.datetime.now(dt.UTC),
        lambda_context=Context(),
    )


def doorbells(queue: queue.Queue) -> list[str]:
    found = queue._client.receive_message(
        QueueUrl=queue.url, MaxNumberOfMessages=10, VisibilityTimeout=0
    )
    return [json.loads(message["Body"])["job_id"] for message in found.get("Messages", [])]


def kill_connections(engine: sa.Engine) -> None:
    """Ends the function's sessions, and returns when the server has forgotten them."""
    ours = "FROM pg_stat_activity WHERE application_name = 'jobplatform-api'"
    with engine.begin() as conn:
        conn.exec_driver_sql(f"SELECT pg_terminate_backend(pid) {ours}")

    def gone() -> bool:
        with engine.begin() as conn:
            return conn.exec_driver_sql(f"SELECT count(*) {ours}").scalar() == 0

    store.until(gone, what="sessions to end")


class KillAt:
    """Ends the function's sessions at the n-th step of its work with the database."""

    def __init__(self, engine: sa.Engine, step: int) -> None:
        self._engine = engine
        self._left = step
        self.fired = False
        self.happened: list[str] = []

    def __enter__(self) -> "KillAt":
        self._target = resources.get().engine
        self._listeners = [(name, self._listener(name)) for name in STEPS]
        for name, listener in self._listeners:
            event.listen(self._target, name, listener)
        return self

    def __exit__(self, *rest: object) -> None:
        for name, listener in self._listeners:
            event.remove(self._target, name, listener)

    def _listener(self, name: str) -> Any:
        def listener(*args: Any) -> None:
            self.happened.append(name)
            self._left -= 1
            if self._left == 0:
                self.fired = True
                kill_connections(self._engine)

        return listener

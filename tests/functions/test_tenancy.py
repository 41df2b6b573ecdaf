"""What belongs to another client does not exist: on every route, and in the database itself."""

import json
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import exc

from functions.admin import handler as admin
from functions.api import resources
from functions.purge import handler as purge
from jobplatform import database, errors, job_store, jobs
from tests.helpers import store
from tests.helpers.api import Answer, Api, count_jobs, operations
from tests.helpers.events import load_event
from tests.helpers.platform import Context

OF_A_JOB = [(method, path) for method, path, _ in operations() if "{job_id}" in path]


@pytest.fixture
def other(api: Api) -> str:
    """The key of another client."""
    return api.new_client("other")


def a_job_in(api: Api, status: jobs.JobStatus) -> str:
    job_id = str(api.submit(metadata={"secret": "of acme"}).json["id"])
    if status is jobs.JobStatus.QUEUED:
        return job_id
    running = store.claim(api.engine)
    assert running is not None
    if status is jobs.JobStatus.SUCCEEDED:
        store.publish(api.engine, running)
    elif status is not jobs.JobStatus.RUNNING:
        store.end(api.engine, running, status)
    return job_id


def without_request(answer: Answer) -> dict[str, Any]:
    return {**answer.json, "instance": None}


def test_there_are_routes_of_a_job() -> None:
    assert {path for _, path in OF_A_JOB} >= {
        "/jobs/{job_id}",
        "/jobs/{job_id}/download",
        "/jobs/{job_id}/cancel",
    }


@pytest.mark.parametrize("status", list(jobs.JobStatus))
@pytest.mark.parametrize(("method", "path"), OF_A_JOB)
def test_job_of_another_client_is_a_job_that_is_not_there(
    api: Api, other: str, method: str, path: str, status: jobs.JobStatus
) -> None:
    job_id = a_job_in(api, status)
    before = store.row(api.engine, uuid.UUID(job_id))

    theirs = api.call(method.upper(), path.replace("{job_id}", job_id), key=other)
    none = api.call(method.upper(), path.replace("{job_id}", str(jobs.new_id())), key=other)

    assert (theirs.status, theirs.code) == (404, "job_not_found")
    assert without_request(theirs) == without_request(none)
    assert theirs.headers == none.headers
    assert store.row(api.engine, uuid.UUID(job_id)) == before


def test_no_route_shows_anything_of_another_client(api: Api, other: str) -> None:
    job_id = a_job_in(api, jobs.JobStatus.SUCCEEDED)

    for method, path, _ in operations():
        answer = api.call(
            method.upper(),
            path.replace("{job_id}", job_id).replace("{name}", "flights"),
            body={"template_name": "flights"} if method == "post" else None,
            key=other,
        )

        assert job_id not in answer.text.replace(f"/jobs/{job_id}", "")
        assert "of acme" not in answer.text
        assert str(api.client_id) not in answer.text


def test_list_shows_own_jobs_only(api: Api, other: str) -> None:
    mine = api.submit().json["id"]
    theirs = api.submit(key=other).json["id"]

    assert [item["id"] for item in api.call("GET", "/jobs").json["items"]] == [mine]
    listed = api.call("GET", "/jobs", key=other).json["items"]
    assert [item["id"] for item in listed] == [theirs]


def test_keys_of_both_plans_of_one_client_see_the_same_jobs(api: Api) -> None:
    job_id = api.submit().json["id"]

    assert api.call("GET", f"/jobs/{job_id}", key=api.new_key(api.client_id, plan="basic")).json


def test_jobs_of_others_do_not_count_for_the_plans_limit(
    api: Api, other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from jobplatform import plans

    monkeypatch.setitem(plans.PLANS, "tiny", plans.Plan(**{**vars(plans.BASIC), "max_queued": 1}))
    tiny = api.new_key(api.client_id, plan="tiny")
    api.submit(key=other)

    assert api.submit(key=tiny).status == 202
    assert api.submit(key=tiny).status == 429


# The second wall: row-level security, for the day when a query forgets its client.


@pytest.fixture
def acme_job(api: Api) -> uuid.UUID:
    return uuid.UUID(a_job_in(api, jobs.JobStatus.RUNNING))


@pytest.fixture
def as_other(api: Api, acme_job: uuid.UUID, other: str) -> Iterator[sa.Connection]:
    """A session of the API on behalf of another client, as its requests have one."""
    caller = resources.caller(other)
    with (
        api.engine.connect() as conn,
        database.client_transaction(resources.get().engine, caller.client_id) as session,
    ):
        assert conn.exec_driver_sql("SELECT count(*) FROM jobplatform.attempts").scalar() == 1
        yield session
        session.rollback()


@pytest.mark.parametrize("table", ["jobs", "attempts", "transitions"])
def test_security_of_rows_hides_those_of_others(as_other: sa.Connection, table: str) -> None:
    assert as_other.exec_driver_sql(f"SELECT count(*) FROM jobplatform.{table}").scalar() == 0


def test_security_of_rows_holds_where_the_code_forgets_the_client(
    as_other: sa.Connection, acme_job: uuid.UUID
) -> None:
    assert job_store.get(as_other, acme_job) is None
    cancelled = job_store.cancel(
        as_other, acme_job, client_id=None, retention=store.SETTINGS.retention
    )
    assert cancelled is None


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE jobplatform.jobs SET metadata = '{}'",
        "UPDATE jobplatform.jobs SET status = 'queued', attempt_token = NULL,"
        " lease_expires_at = NULL",
    ],
)
def test_security_of_rows_keeps_updates_from_those_of_others(
    as_other: sa.Connection, statement: str
) -> None:
    assert as_other.exec_driver_sql(statement).rowcount == 0


def test_client_cannot_make_a_job_of_another(api: Api, as_other: sa.Connection) -> None:
    new = store.new_job(api.client_id)

    with pytest.raises(exc.DatabaseError, match="row-level security"):
        job_store.insert(as_other, new, request_hash="", max_queued=10)


def test_client_cannot_give_its_job_to_another(api: Api, other: str) -> None:
    job_id = api.submit(key=other).json["id"]
    caller = resources.caller(other)

    with (
        pytest.raises(exc.DatabaseError, match="row-level security"),
        database.client_transaction(resources.get().engine, caller.client_id) as session,
    ):
        session.exec_driver_sql(
            f"UPDATE jobplatform.jobs SET client_id = '{api.client_id}' WHERE id = '{job_id}'"
        )


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM jobplatform.jobs",
        "SELECT * FROM jobplatform.clients",
        "SELECT * FROM jobplatform.api_keys",
        "SELECT * FROM jobplatform.alembic_version",
        "UPDATE jobplatform.clients SET name = 'x'",
        "INSERT INTO jobplatform.attempts DEFAULT VALUES",
        "UPDATE jobplatform.attempts SET outcome = 'published'",
        "INSERT INTO jobplatform.transitions DEFAULT VALUES",
        "TRUNCATE jobplatform.jobs",
        "ALTER TABLE jobplatform.jobs DISABLE ROW LEVEL SECURITY",
        "DROP POLICY own_jobs ON jobplatform.jobs",
        "CREATE TABLE jobplatform.mine (id int)",
        "SET ROLE postgres",
    ],
)
def test_client_may_do_nothing_else(as_other: sa.Connection, statement: str) -> None:
    with pytest.raises(exc.DatabaseError, match=r"permission denied|must be owner"):
        as_other.exec_driver_sql(statement)


def test_role_of_clients_sees_nothing_without_a_client(api: Api, acme_job: uuid.UUID) -> None:
    with api.engine.connect() as conn:
        conn.exec_driver_sql("SET ROLE jobplatform_client")
        with pytest.raises(exc.DatabaseError, match=r"unrecognized configuration|invalid input"):
            conn.exec_driver_sql("SELECT count(*) FROM jobplatform.jobs")
        conn.rollback()


def test_nothing_of_a_client_stays_with_a_pooled_connection(api: Api, acme_job: uuid.UUID) -> None:
    engine = resources.get().engine
    mine, theirs = api.client_id, uuid.uuid4()
    count = "SELECT count(*), current_user FROM jobplatform.jobs"
    with database.client_transaction(engine, mine) as conn:
        assert tuple(conn.exec_driver_sql(count).one()) == (1, "jobplatform_client")
    with database.client_transaction(engine, theirs):
        pass  # nothing asked: what was prepared for it must not reach whoever comes next
    with database.transaction(engine) as conn:
        assert tuple(conn.exec_driver_sql(count).one()) == (1, "platform")
    with database.client_transaction(engine, theirs) as conn:
        assert tuple(conn.exec_driver_sql(count).one()) == (0, "jobplatform_client")
    with pytest.raises(ZeroDivisionError), database.client_transaction(engine, mine):
        raise ZeroDivisionError
    with database.client_transaction(engine, theirs) as conn:
        assert tuple(conn.exec_driver_sql(count).one()) == (0, "jobplatform_client")
    with (
        pytest.raises(exc.DatabaseError),
        database.client_transaction(engine, mine) as conn,
    ):
        conn.exec_driver_sql("SELECT 1/0")
    with database.client_transaction(engine, theirs) as conn:
        assert tuple(conn.exec_driver_sql(count).one()) == (0, "jobplatform_client")
    assert engine.pool.checkedin() == 1, "all of this was one connection"  # type: ignore[attr-defined]


# The life of clients and keys, by the operator's commands.


def operate(command: str, **arguments: Any) -> Any:
    answer = admin.lambda_handler({"command": command, "arguments": arguments}, Context())
    return answer["result"]


def test_revoked_key_is_forbidden_when_the_function_has_forgotten_it(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the door it stops at once; the function remembers callers for half a minute."""
    clock = [1000.0]
    monkeypatch.setattr(resources, "_clock", lambda: clock[0])
    assert api.call("GET", "/jobs").status == 200

    operate("revoke_key", api_key_id=api.key)
    clock[0] += 31

    answer = api.call("GET", "/jobs")
    assert (answer.status, answer.code) == (403, "forbidden")
    assert api.submit().status == 403
    assert count_jobs(api.engine) == 0


def test_known_caller_costs_no_query_for_half_a_minute(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [1000.0]
    monkeypatch.setattr(resources, "_clock", lambda: clock[0])
    asked: list[str] = []
    find = resources.client_store.find_caller
    monkeypatch.setattr(
        "jobplatform.client_store.find_caller",
        lambda conn, key: asked.append(key) or find(conn, key),
    )

    for _ in range(3):
        api.call("GET", "/templates")
    clock[0] += 29
    api.call("GET", "/templates")
    assert len(asked) == 1
    clock[0] += 2
    api.call("GET", "/templates")
    assert len(asked) == 2


def test_key_that_nobody_has_is_asked_for_every_time(api: Api) -> None:
    """So that a new key works at once."""
    assert api.call("GET", "/templates", key="new").status == 403
    operate(
        "add_key",
        client="acme",
        plan="basic",
        key_sha256=resources.client_store.key_hash("new").hex(),
        api_key_id="new",
    )

    assert api.call("GET", "/templates", key="new").status == 200


def test_memory_of_callers_is_bounded(api: Api) -> None:
    for number in range(1_200):
        resources._callers[str(number).encode()] = (0.0, resources.caller(api.key))

    api.call("GET", "/templates", key=api.new_client("other"))

    assert len(resources._callers) < 10


def test_rotation_keeps_the_clients_jobs_and_keys(api: Api) -> None:
    job = api.submit(idempotency_key="k").json
    new_key = api.new_key(api.client_id, plan="basic")

    operate("revoke_key", api_key_id=api.key)
    resources._callers.clear()

    assert api.call("GET", f"/jobs/{job['id']}", key=api.key).status == 403
    assert api.call("GET", f"/jobs/{job['id']}", key=new_key).json == job
    assert api.submit(idempotency_key="k", key=new_key).headers["idempotent-replayed"] == "true"


def test_removed_client_has_nothing_any_more(api: Api, other: str) -> None:
    done = a_job_in(api, jobs.JobStatus.SUCCEEDED)
    waiting = api.submit().json["id"]
    kept = api.submit(key=other).json["id"]

    removed = operate("remove_client", client="acme")

    assert removed["api_key_ids"] == [api.key]
    assert store.get(api.engine, uuid.UUID(waiting)).status is jobs.JobStatus.CANCELLED
    resources._callers.clear()
    assert api.call("GET", f"/jobs/{done}").status == 403
    result = purge.lambda_handler(load_event("purge_daily"), Context(900))
    assert (result["jobs"], result["clients"]) == (2, 1)
    assert store.count(api.engine, "jobs") == 1
    assert store.count(api.engine, "api_keys") == 1
    assert api.call("GET", f"/jobs/{kept}", key=other).status == 200


def test_new_client_of_an_old_name_sees_nothing_of_the_old_one(api: Api) -> None:
    job_id = api.submit(idempotency_key="k").json["id"]
    operate("remove_client", client="acme")
    again = operate("create_client", name="acme")
    key = api.new_key(uuid.UUID(again["client_id"]))

    assert api.call("GET", f"/jobs/{job_id}", key=key).status == 404
    assert api.call("GET", "/jobs", key=key).json["items"] == []
    fresh = api.submit(idempotency_key="k", key=key)
    assert "idempotent-replayed" not in fresh.headers


def test_submit_for_a_client_that_was_removed_and_purged_a_moment_ago_is_403(api: Api) -> None:
    """The function may still remember the caller."""
    assert api.call("GET", "/templates").status == 200
    operate("remove_client", client="acme")
    purge.lambda_handler(load_event("purge_daily"), Context(900))

    answer = api.submit(idempotency_key="k")

    assert (answer.status, answer.code) == (403, "forbidden")


def test_key_is_known_by_its_hash_only(api: Api) -> None:
    with api.engine.begin() as conn:
        rows = conn.exec_driver_sql("SELECT key_sha256 FROM jobplatform.api_keys").all()

    assert api.key.encode() not in json.dumps([bytes(row[0]).hex() for row in rows]).encode()
    assert bytes(rows[0][0]) == resources.client_store.key_hash(api.key)


def test_errors_of_the_database_never_carry_a_client_into_the_next_request(
    api: Api, other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = api.submit().json["id"]

    def fail(*args: Any, **kwargs: Any) -> None:
        raise errors.ServiceUnavailable

    with monkeypatch.context() as patch:
        patch.setattr("jobplatform.job_store.get", fail)
        assert api.call("GET", f"/jobs/{mine}").status == 503

    assert api.call("GET", f"/jobs/{mine}", key=other).status == 404
    assert api.call("GET", f"/jobs/{mine}").status == 200

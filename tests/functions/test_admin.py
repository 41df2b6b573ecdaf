"""The function behind `jobctl admin`: every answer is a result or an error in words."""

import hashlib
import json
import uuid
from typing import Any

import pytest
import sqlalchemy as sa

from functions.admin import handler
from jobplatform.usecases import operate
from tests.helpers import store
from tests.helpers.events import load_event
from tests.helpers.platform import Context

pytestmark = pytest.mark.usefixtures("environment")


def invoke(event: Any) -> dict[str, Any]:
    answer = handler.lambda_handler(event, Context())
    json.dumps(answer)
    assert set(answer) in ({"result"}, {"error"})
    return answer


def result(event: Any) -> Any:
    answer = invoke(event)
    assert "result" in answer, answer
    return answer["result"]


def error(event: Any) -> tuple[str, str]:
    answer = invoke(event)
    assert "error" in answer, answer
    assert set(answer["error"]) == {"code", "message"}
    return answer["error"]["code"], answer["error"]["message"]


def test_life_of_a_client_and_its_key(engine: sa.Engine) -> None:
    made = result(load_event("admin_create_client"))
    assert made["name"] == "acme"
    assert uuid.UUID(made["client_id"])

    added = result(load_event("admin_add_key"))
    assert added == {"client_id": made["client_id"], "api_key_id": "m8p4qk2v7d", "plan": "basic"}

    (listed,) = result(load_event("admin_list_clients"))
    assert (listed["client_id"], listed["removed_at"]) == (made["client_id"], None)
    (key,) = listed["keys"]
    assert (key["api_key_id"], key["plan"], key["revoked_at"]) == ("m8p4qk2v7d", "basic", None)

    result(load_event("admin_revoke_key"))
    revoked_at = result(load_event("admin_list_clients"))[0]["keys"][0]["revoked_at"]
    assert revoked_at
    result(load_event("admin_revoke_key"))
    assert result(load_event("admin_list_clients"))[0]["keys"][0]["revoked_at"] == revoked_at

    removed = result(load_event("admin_remove_client"))
    assert removed == {"client_id": made["client_id"], "api_key_ids": ["m8p4qk2v7d"]}
    assert result(load_event("admin_list_clients"))[0]["removed_at"]
    assert error(load_event("admin_remove_client"))[0] == "client_not_found"


def test_unknown_command_is_told_with_those_that_are() -> None:
    code, message = error(load_event("admin_unknown_command"))

    assert code == "operator_error"
    assert all(command in message for command in operate.COMMANDS)


def test_name_is_taken_once_and_free_after_its_removal() -> None:
    result(load_event("admin_create_client"))
    assert error(load_event("admin_create_client"))[0] == "client_exists"
    result(load_event("admin_remove_client"))

    result(load_event("admin_create_client"))


def test_key_for_a_client_that_is_not_there() -> None:
    assert error(load_event("admin_add_key"))[0] == "client_not_found"


def test_same_key_again_is_no_error_for_a_caller_whose_first_answer_was_lost(
    engine: sa.Engine,
) -> None:
    result(load_event("admin_create_client"))

    first, second = (result(load_event("admin_add_key")) for _ in range(2))

    assert first == second
    assert store.count(engine, "api_keys") == 1


@pytest.mark.parametrize(
    "change",
    [
        {"plan": "pro"},
        {"client": "other"},
        {"api_key_id": "another"},
        {"key_sha256": hashlib.sha256(b"another").hexdigest()},
    ],
)
def test_another_key_of_the_same_id_or_hash_is_refused(
    engine: sa.Engine, change: dict[str, str]
) -> None:
    for name in ("acme", "other"):
        result(load_event("admin_create_client", arguments={"name": name}))
    result(load_event("admin_add_key"))

    assert error(load_event("admin_add_key", arguments=change))[0] == "key_exists"
    assert store.count(engine, "api_keys") == 1


def test_key_that_was_revoked_is_not_revived_by_adding_it_again(engine: sa.Engine) -> None:
    result(load_event("admin_create_client"))
    result(load_event("admin_add_key"))
    result(load_event("admin_revoke_key"))

    assert error(load_event("admin_add_key"))[0] == "key_exists"


def test_removing_a_client_names_it_by_id_too() -> None:
    client_id = result(load_event("admin_create_client"))["client_id"]

    assert result(load_event("admin_remove_client", arguments={"client": client_id}))


@pytest.mark.parametrize(
    "event",
    [
        {},
        {"command": None},
        {"command": ["list_clients"]},
        {"command": {"a": 1}},
        {"command": "__init__"},
        {"command": "list_clients", "arguments": {"nope": 1}},
        {"command": "list_clients", "arguments": [1]},
        {"command": "list_clients", "arguments": "x"},
        {"command": "create_client"},
        {"command": "create_client", "arguments": {"name": 5}},
        {"command": "create_client", "arguments": {"name": None}},
        {"command": "create_client", "arguments": {"name": ""}},
        {"command": "create_client", "arguments": {"name": " acme"}},
        {"command": "create_client", "arguments": {"name": "a" * 101}},
        {"command": "create_client", "arguments": {"name": "a\0b"}},
        {"command": "create_client", "arguments": {"name": "\ud800"}},
        {"command": "create_client", "arguments": {"name": "a\nb"}},
        {"command": "remove_client", "arguments": {"client": "\0"}},
        {"command": "remove_client", "arguments": {"client": "\ud800"}},
        {"command": "remove_client", "arguments": {"client": 1}},
        {"command": "add_key", "arguments": {"client": "acme"}},
        {
            "command": "add_key",
            "arguments": {
                "client": "acme",
                "plan": "gold",
                "key_sha256": "00" * 32,
                "api_key_id": "x",
            },
        },
        {
            "command": "add_key",
            "arguments": {
                "client": "acme",
                "plan": "pro",
                "key_sha256": "the key itself",
                "api_key_id": "x",
            },
        },
        {
            "command": "add_key",
            "arguments": {
                "client": "acme",
                "plan": "pro",
                "key_sha256": "00" * 31,
                "api_key_id": "x",
            },
        },
        {"command": "revoke_key", "arguments": {"api_key_id": "a\0"}},
        {"command": "list_jobs", "arguments": {"limit": "10"}},
        {"command": "list_jobs", "arguments": {"limit": 10**20}},
        {"command": "list_jobs", "arguments": {"status": "\0"}},
        {"command": "explain_job", "arguments": {"job_id": "x"}},
        {"command": "explain_job", "arguments": {"job_id": None}},
        {"command": "purge", "arguments": {"dry_run": "no"}},
        {"command": "purge"},
    ],
    ids=lambda event: str(event)[:80],
)
def test_wrong_commands_are_told_and_change_nothing(engine: sa.Engine, event: Any) -> None:
    code, message = error(event)

    assert code in ("operator_error", "client_not_found", "job_not_found")
    assert message
    assert store.count(engine, "clients") == 0


def test_revoking_a_key_that_nobody_has() -> None:
    code, message = error(load_event("admin_revoke_key"))

    assert (code, "m8p4qk2v7d" in message) == ("key_not_found", True)


def test_database_that_is_away_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://nobody@127.0.0.1:9/none")

    code, message = error(load_event("admin_list_clients"))

    assert code == "service_unavailable"
    assert "127.0.0.1" not in message

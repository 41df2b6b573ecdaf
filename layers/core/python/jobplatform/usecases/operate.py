"""What an operator can do, one function a command; `run` finds it by its name."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa

from jobplatform import client_store, database, errors, jobs, plans


@dataclasses.dataclass(frozen=True, kw_only=True)
class Operator:
    engine: sa.Engine


def run(operator: Operator, command: str, arguments: dict[str, Any]) -> Any:
    """Runs a command. Raises `errors.OperatorError` for one that there is not, or with other arguments."""
    function = COMMANDS.get(command)
    if function is None:
        raise errors.OperatorError(
            f"There is no command {command!r}; there are {', '.join(sorted(COMMANDS))}."
        )
    try:
        bound = inspect.signature(function).bind(operator, **arguments)
    except TypeError as error:
        raise errors.OperatorError(f"{command}: {error}") from error
    return function(*bound.args, **bound.kwargs)


def create_client(operator: Operator, *, name: str) -> dict[str, Any]:
    if not 1 <= len(name) <= 100 or not name.isprintable() or name != name.strip():
        raise errors.OperatorError("A client's name is 1 to 100 printable characters.")
    client_id = jobs.new_id()
    with database.transaction(operator.engine) as conn:
        created_at = client_store.create(conn, client_id=client_id, name=name)
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
    return {"client_id": client_id, "api_key_id": api_key_id, "plan": plan}


def revoke_key(operator: Operator, *, api_key_id: str) -> dict[str, Any]:
    with database.transaction(operator.engine) as conn:
        client_store.revoke_key(conn, api_key_id)
    return {"api_key_id": api_key_id}


def remove_client(operator: Operator, *, client: str) -> dict[str, Any]:
    with database.transaction(operator.engine) as conn:
        client_id = client_store.resolve(conn, client)
        return {"client_id": client_id, "api_key_ids": client_store.remove(conn, client_id)}


COMMANDS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (create_client, list_clients, add_key, revoke_key, remove_client)
}

"""SQL on clients and their API keys; a key is known by its SHA-256 only."""

import dataclasses
import datetime as dt
import hashlib
import uuid
from typing import Any

import sqlalchemy as sa
from sqlalchemy import exc
from sqlalchemy.dialects import postgresql as pg

from jobplatform import errors, job_store
from jobplatform.tables import api_keys, clients, jobs

# A result of a removed client has no grace: it is past any.
_LONG_AGO = sa.text("timestamptz '2000-01-01 00:00:00+00'")


@dataclasses.dataclass(frozen=True)
class Caller:
    """Who asks: the client and the plan of the key that was used."""

    client_id: uuid.UUID
    plan: str


def key_hash(api_key: str) -> bytes:
    """API keys are random and long, so a plain SHA-256 is enough to hide them."""
    return hashlib.sha256(api_key.encode(errors="surrogatepass")).digest()


def find_caller(conn: sa.Connection, api_key: str) -> Caller | None:
    """The active client of an active key."""
    row = conn.execute(
        sa.select(clients.c.id, api_keys.c.plan)
        .join_from(api_keys, clients, clients.c.id == api_keys.c.client_id)
        .where(
            api_keys.c.key_sha256 == key_hash(api_key),
            api_keys.c.revoked_at.is_(None),
            clients.c.removed_at.is_(None),
        )
    ).first()
    return Caller(row.id, row.plan) if row else None


def create(conn: sa.Connection, *, client_id: uuid.UUID, name: str) -> dt.datetime:
    """Makes a client and answers when; raises `errors.ClientExists`."""
    try:
        created_at: dt.datetime = conn.execute(
            sa.insert(clients).values(id=client_id, name=name).returning(clients.c.created_at)
        ).scalar_one()
        return created_at
    except exc.IntegrityError as error:
        if "clients_name_key" in str(error):
            raise errors.ClientExists(f"A client named {name} exists.") from error
        raise


def resolve(conn: sa.Connection, reference: str) -> uuid.UUID:
    """The active client of this name or id; raises `errors.ClientNotFound`."""
    try:
        condition = clients.c.id == uuid.UUID(reference)
    except ValueError:
        condition = clients.c.name == reference
    found = conn.scalar(sa.select(clients.c.id).where(condition, clients.c.removed_at.is_(None)))
    if found is None:
        raise errors.ClientNotFound(f"There is no active client {reference}.")
    return uuid.UUID(str(found))


def add_key(
    conn: sa.Connection, *, client_id: uuid.UUID, key_sha256: bytes, api_key_id: str, plan: str
) -> None:
    """Adds a key; the very same key again is no error. Raises `errors.KeyExists` for another."""
    new = {
        "client_id": client_id,
        "key_sha256": key_sha256,
        "api_key_id": api_key_id,
        "plan": plan,
    }
    added = conn.execute(pg.insert(api_keys).values(new).on_conflict_do_nothing())
    same = [api_keys.c[name] == value for name, value in new.items()]
    if added.rowcount == 0 and not conn.scalar(
        sa.select(sa.exists().where(*same, api_keys.c.revoked_at.is_(None)))
    ):
        raise errors.KeyExists(f"There is a key {api_key_id}, or another of this hash.")


def revoke_key(conn: sa.Connection, api_key_id: str) -> None:
    """Ends a key, also one that has ended; raises `errors.KeyNotFound`."""
    result = conn.execute(
        sa.update(api_keys)
        .where(api_keys.c.api_key_id == api_key_id)
        .values(revoked_at=sa.func.coalesce(api_keys.c.revoked_at, sa.func.now()))
    )
    if result.rowcount == 0:
        raise errors.KeyNotFound(f"There is no key {api_key_id}.")


def list_all(conn: sa.Connection) -> list[dict[str, Any]]:
    """Every client, removed ones included, with its keys."""
    keys: dict[uuid.UUID, list[dict[str, Any]]] = {}
    for row in conn.execute(sa.select(api_keys).order_by(api_keys.c.created_at)):
        keys.setdefault(row.client_id, []).append(
            {
                "api_key_id": row.api_key_id,
                "plan": row.plan,
                "created_at": row.created_at,
                "revoked_at": row.revoked_at,
            }
        )
    return [
        {
            "client_id": row.id,
            "name": row.name,
            "created_at": row.created_at,
            "removed_at": row.removed_at,
            "keys": keys.get(row.id, []),
        }
        for row in conn.execute(sa.select(clients).order_by(clients.c.name))
    ]


def remove(conn: sa.Connection, client_id: uuid.UUID) -> list[str]:
    """Ends the client and its keys and lets the purge take everything of it: the ids of the keys.

    Jobs that wait are cancelled, one that runs is marked to be cancelled.
    """
    conn.execute(
        sa.update(clients).where(clients.c.id == client_id).values(removed_at=sa.func.now())
    )
    key_ids = conn.scalars(
        sa.update(api_keys)
        .where(api_keys.c.client_id == client_id)
        .values(revoked_at=sa.func.coalesce(api_keys.c.revoked_at, sa.func.now()))
        .returning(api_keys.c.api_key_id)
    )
    ids = list(key_ids)
    conn.execute(
        sa.update(jobs)
        .where(jobs.c.client_id == client_id, jobs.c.status.in_(["queued", "running"]))
        .values(job_store.cancelled("client removed", retention=dt.timedelta(0)))
    )
    return ids


def hasten_removed(conn: sa.Connection, *, limit: int) -> int:
    """Lets jobs of removed clients be purged now instead of at their own time, a bounded batch."""
    removed = sa.select(clients.c.id).where(clients.c.removed_at.is_not(None)).scalar_subquery()
    waiting = (
        sa.select(jobs.c.id)
        .where(
            jobs.c.client_id.in_(removed),
            jobs.c.finished_at.is_not(None),
            sa.or_(
                jobs.c.expires_at > sa.func.now(),
                sa.and_(jobs.c.result_deleted_at.is_(None), jobs.c.result_expires_at > _LONG_AGO),
            ),
        )
        .limit(limit)
        .with_for_update(skip_locked=True)
        .scalar_subquery()
    )
    result = conn.execute(
        sa.update(jobs)
        .where(jobs.c.id.in_(waiting))
        .values(
            expires_at=sa.func.now(),
            result_expires_at=sa.case((jobs.c.result_key.is_not(None), _LONG_AGO), else_=None),
        )
    )
    return result.rowcount


def delete_removed(conn: sa.Connection, *, limit: int) -> int:
    """Deletes removed clients that have no job left, with their keys."""
    gone = (
        sa.select(clients.c.id)
        .where(
            clients.c.removed_at.is_not(None),
            sa.not_(sa.exists().where(jobs.c.client_id == clients.c.id)),
        )
        .limit(limit)
        .scalar_subquery()
    )
    return conn.execute(sa.delete(clients).where(clients.c.id.in_(gone))).rowcount

"""Connections to Postgres by pg8000: TLS, secrets, the engine of the platform's own tables, and its
transactions."""

import contextlib
import functools
import json
import select
import socket
import ssl
import time
import uuid
from collections.abc import Iterator
from typing import Any, Protocol, cast

import pg8000.dbapi
import pg8000.native
import sqlalchemy as sa
from sqlalchemy import event, exc

from jobplatform import aws, errors, pipelining, tables

CONNECT_TIMEOUT = 5.0
DriverError = pg8000.native.DatabaseError
"""What the server answers as an error, raised by connections outside the engine."""
InterfaceError = pg8000.native.InterfaceError
"""What the driver itself raises, such as for a connection that has ended."""
_IDLE_BEFORE_PING = 60.0
# A server or a worker that is gone without a word is noticed by the other side within about 30
# seconds: by keepalives where nothing is sent, by the last where something is.
_KEEPALIVE = {"IDLE": 15, "INTVL": 5, "CNT": 3}
_CLIENT_KEEPALIVE = {
    **{f"TCP_KEEP{name}": number for name, number in _KEEPALIVE.items()},
    "TCP_USER_TIMEOUT": 30_000,
}
_SERVER_KEEPALIVE = {
    "tcp_keepalives_idle": str(_KEEPALIVE["IDLE"]),
    "tcp_keepalives_interval": str(_KEEPALIVE["INTVL"]),
    "tcp_keepalives_count": str(_KEEPALIVE["CNT"]),
}


class _Address(Protocol):
    """What both groups of database settings have."""

    @property
    def url(self) -> str | None: ...
    @property
    def secret_arn(self) -> str | None: ...
    @property
    def ca_file(self) -> str | None: ...


def connect_arguments(
    address: _Address, *, application_name: str, **startup: str
) -> dict[str, Any]:
    """Arguments of `pg8000` connects, with a fresh socket in `sock`.

    The socket has TCP_NODELAY, which pg8000 never sets, and the TLS context is made once a process:
    together they make a TLS connect 11 times as quick.
    """
    if address.url is None:
        raise ValueError("no database URL is set")
    url = sa.make_url(address.url)
    user, password = url.username, url.password
    if address.secret_arn:
        secret = _secret(address.secret_arn)
        user, password = secret["username"], secret["password"]
    host, port = url.host or "localhost", url.port or 5432
    sslmode = str(url.query.get("sslmode", "disable"))
    ssl_context = False if sslmode == "disable" else _tls(sslmode, address.ca_file)
    sock = socket.create_connection((host, port), timeout=CONNECT_TIMEOUT)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, number in _CLIENT_KEEPALIVE.items():
        # Not every platform has all of them.
        if option := getattr(socket, name, None):
            sock.setsockopt(socket.IPPROTO_TCP, option, number)
    return {
        "user": user,
        "password": password,
        "host": host,
        "port": port,
        "database": url.database,
        "sock": sock,
        "ssl_context": ssl_context,
        "application_name": application_name,
        "startup_params": _SERVER_KEEPALIVE | startup,
    }


def connect(
    address: _Address, *, application_name: str, **startup: str
) -> pg8000.native.Connection:
    """A connection outside any pool, in autocommit; `startup` are settings of its session."""
    return _connect(pg8000.native.Connection, address, application_name, startup, read_timeout=None)


def _connect(
    kind: Any,
    address: _Address,
    application_name: str,
    startup: dict[str, str],
    read_timeout: float | None,
) -> Any:
    def attempt() -> Any:
        arguments = connect_arguments(address, application_name=application_name, **startup)
        try:
            return kind(**arguments)
        except BaseException:
            arguments["sock"].close()
            raise

    try:
        connection = attempt()
    except pg8000.dbapi.DatabaseError as error:
        if not address.secret_arn or sqlstate(error) != "28P01":
            raise
        # The password was rotated while this process kept the old one.
        _secret.cache_clear()
        connection = attempt()
    connection._usock.settimeout(read_timeout)
    return connection


def create_engine(
    address: _Address, *, application_name: str, statement_timeout: float = 20.0
) -> sa.Engine:
    """The engine of the platform's own tables; `statement_timeout` in seconds.

    A connection is kept between invocations. One that the server has closed meanwhile is replaced
    on checkout: its socket is readable although nothing was asked, which costs no round trip to
    see.
    """
    startup = {
        "statement_timeout": str(int(statement_timeout * 1000)),
        "idle_in_transaction_session_timeout": "60000",
        "timezone": "UTC",
    }
    engine = sa.create_engine(
        "postgresql+pg8000://",
        creator=lambda: _connect(
            pipelining.Connection, address, application_name, startup, statement_timeout + 5
        ),
        pool_size=2,
        max_overflow=8,
        pool_timeout=10,
        pool_reset_on_return="rollback",
    )

    @event.listens_for(engine, "checkin")
    def _note_idle(dbapi_connection: Any, record: Any) -> None:
        record.info["idle_since"] = time.monotonic()

    @event.listens_for(engine, "checkout")
    def _refuse_stale(dbapi_connection: Any, record: Any, proxy: Any) -> None:
        idle_since = record.info.get("idle_since")
        if idle_since is None:
            return
        try:
            if select.select([dbapi_connection._usock], [], [], 0)[0]:
                raise exc.DisconnectionError
            if time.monotonic() - idle_since > _IDLE_BEFORE_PING:
                dbapi_connection.execute_simple("")
        except (OSError, ValueError, AttributeError, pg8000.dbapi.Error) as error:
            raise exc.DisconnectionError from error

    return engine


@contextlib.contextmanager
def transaction(
    bind: sa.Engine | sa.Connection, *, single: bool = False
) -> Iterator[sa.Connection]:
    """One transaction as the platform itself, of a connection of its own or of this one.

    `single`: it has one statement, with which COMMIT goes out, so that an error after it undoes
    nothing. Raises `errors.ServiceUnavailable` where the database cannot be reached.
    """
    with _translated():
        opened: contextlib.AbstractContextManager[sa.Connection] = (
            contextlib.nullcontext(bind) if isinstance(bind, sa.Connection) else bind.connect()
        )
        with opened as connection, connection.begin():
            if single:
                commit_with_next(connection)
            yield connection


@contextlib.contextmanager
def client_transaction(
    bind: sa.Engine | sa.Connection, client_id: uuid.UUID, *, single: bool = False
) -> Iterator[sa.Connection]:
    """One transaction as one client: row-level security hides everything that is not its own."""
    with transaction(bind, single=single) as connection:
        driver = _driver(connection)
        driver.defer(f"SET LOCAL ROLE {tables.CLIENT_ROLE}")
        driver.defer(f"SET LOCAL jobplatform.client_id = '{uuid.UUID(str(client_id))}'")
        yield connection


def commit_with_next(connection: sa.Connection) -> None:
    """The next statement is the last of its transaction, which saves the wait for a COMMIT."""
    _driver(connection).commit_with_next()


def _driver(connection: sa.Connection) -> pipelining.Connection:
    driver = connection.connection.driver_connection
    assert isinstance(driver, pipelining.Connection)
    return driver


@contextlib.contextmanager
def place(
    engine: sa.Engine, client_id: uuid.UUID, *, of_client: int, of_all: int
) -> Iterator[sa.Connection | None]:
    """A connection that has one of a client's places and one of all clients'; None: all are taken.

    Places are locks of the session, so that whoever dies leaves none behind.
    """
    with _translated(), engine.connect() as connection:
        try:
            with connection.begin():
                taken = connection.scalar(
                    _TAKE_PLACE,
                    {"client": str(client_id), "of_client": of_client, "of_all": of_all},
                )
            yield connection if taken else None
            with connection.begin():
                connection.execute(_LEAVE_PLACE)
        except BaseException:
            connection.invalidate()
            raise


# EXISTS stops at the first lock that it gets. 0 stands for all clients.
_TAKE_PLACE = sa.text("""
SELECT EXISTS (SELECT FROM generate_series(1, CAST(:of_all AS integer)) AS place
               WHERE pg_try_advisory_lock(0, place))
    AND EXISTS (SELECT FROM generate_series(1, CAST(:of_client AS integer)) AS place
                WHERE pg_try_advisory_lock(hashtext(:client), place))
""")
_LEAVE_PLACE = sa.text("SELECT pg_advisory_unlock_all()")


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (exc.OperationalError, exc.InterfaceError, exc.TimeoutError, OSError) as error:
        raise errors.ServiceUnavailable from error
    except exc.DatabaseError as error:
        if is_transient(error):
            raise errors.ServiceUnavailable from error
        raise


def sqlstate(error: BaseException) -> str | None:
    """The SQLSTATE of a pg8000 error, also when SQLAlchemy wrapped it."""
    cause: Any = getattr(error, "orig", None) or error
    facts = cause.args[0] if cause.args else None
    return facts.get("C") if isinstance(facts, dict) else None


def is_transient(error: BaseException) -> bool:
    """Whether trying again may help: not the statement was at fault, but the connection, the
    server's state or a conflict.

    Source: https://www.postgresql.org/docs/current/errcodes-appendix.html
    """
    if isinstance(error, OSError | pg8000.dbapi.InterfaceError | exc.InterfaceError):
        return True
    if isinstance(error, exc.DBAPIError) and error.connection_invalidated:
        return True
    state = sqlstate(error)
    if state is None:
        return False
    # Connection, rollback (serialization, deadlock), resources, operator's intervention, system.
    return state[:2] in {"08", "40", "53", "57", "58"} or state in {"25006", "55P03", "XX000"}


@functools.cache
def _tls(sslmode: str, ca_file: str | None) -> ssl.SSLContext:
    """One context a process: reading the authorities is most of what a TLS connect costs."""
    context = ssl.create_default_context(cafile=ca_file)
    if sslmode == "require":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif sslmode != "verify-full":
        raise ValueError(f"sslmode {sslmode} is none of disable, require, verify-full")
    return context


@functools.cache
def _secret(arn: str) -> dict[str, str]:
    value = aws.client("secretsmanager").get_secret_value(SecretId=arn)["SecretString"]
    return cast(dict[str, str], json.loads(value))

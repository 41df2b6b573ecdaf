"""A pg8000 connection that waits for the server once a statement.

pg8000 sends a statement in three packets and waits after each, and BEGIN and COMMIT in more of
them; over a network these waits are most of a short transaction. Here all messages of a statement
go out together, with BEGIN and what else belongs before it, and with COMMIT where it is the last.
All of it has one Sync, so that the server skips the rest once a part fails. Uses private parts of
pg8000, whose version is pinned.

pg8000 also looks at each character of each statement for its placeholders, a millisecond for a long
one; here that is remembered. And a statement with parameters is prepared once a connection, which
saves the server parsing, and after some uses planning it; those used last are kept. A pooler
between us and the server has to keep prepared statements apart (PgBouncer does from 1.21 on).
"""

import contextlib
import dataclasses
import datetime as dt
import functools
import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import pg8000.converters
import pg8000.core
import pg8000.dbapi

_BEGIN = "begin transaction"
_MAX_PREPARED = 64
# What was prepared no longer fits the tables, or is not known (a pooler gave us another session).
_PREPARE_AGAIN = {"0A000", "26000"}
_CONSTRAINT_VIOLATION = "23"


@dataclasses.dataclass(frozen=True)
class _Prepared:
    """A statement that the server knows, and what its answers look like."""

    name: bytes
    columns: Any
    input_funcs: Any


class Connection(pg8000.dbapi.Connection):  # type: ignore[misc]
    def __init__(self, *arguments: Any, **named: Any) -> None:
        self._deferred: list[str] = []
        self._next_is_last = False
        self._ended = False
        # The one used last comes last. Names of others are told to the server with what comes next.
        self._prepared: dict[tuple[str, Sequence[int]], _Prepared] = {}
        self._forgotten: list[bytes] = []
        self._names = (f"s{number}".encode() for number in itertools.count())
        super().__init__(*arguments, **named)
        # pg8000's own way by strptime takes five times as long.
        self.register_in_adapter(pg8000.converters.TIMESTAMPTZ, dt.datetime.fromisoformat)

    def defer(self, statement: str) -> None:
        """Sends a statement together with the next one, before it and in its transaction.

        It may have neither parameters nor an answer; an error of it is raised by the next one,
        which then has done nothing. Without a next one it is never sent.
        """
        if not self._in_transaction:
            self._deferred.append(_BEGIN)
        self._deferred.append(statement)

    def commit_with_next(self) -> None:
        """Sends COMMIT together with the next statement, unless that fails.

        Another statement in the same transaction is an error then; `commit` has nothing left to do.
        What cannot be sent so (a COPY, several statements in one text) is committed by `commit`.
        """
        self._next_is_last = True

    def cursor(self) -> "_Cursor":
        return _Cursor(self)

    @property
    def _in_transaction(self) -> bool:
        return bool(self._deferred) or bool(super()._in_transaction)

    def commit(self) -> None:
        self._reset()
        if self._in_transaction:
            super().commit()

    def close(self) -> None:
        """pg8000 leaves the stream, and with it the socket, to the garbage collector."""
        stream = self._sock
        try:
            super().close()
        finally:
            if stream is not None:
                with contextlib.suppress(OSError, ValueError):
                    stream.close()

    def rollback(self) -> None:
        self._reset()
        super().rollback()

    def _reset(self) -> None:
        self._deferred.clear()
        self._next_is_last = self._ended = False

    def execute_simple(self, statement: str) -> Any:
        """pg8000 calls it for BEGIN and for statements without parameters."""
        if statement == _BEGIN:
            self._deferred.append(_BEGIN)
            return pg8000.core.Context(statement)
        if (self._deferred or self._next_is_last) and ";" not in statement:
            return self._run(statement)
        self._send_deferred()
        return super().execute_simple(statement)

    def execute_unnamed(
        self,
        statement: str,
        vals: Sequence[Any] = (),
        oids: Iterable[int] = (),
        stream: Any = None,
    ) -> Any:
        if stream is None:
            return self._run(statement, vals, tuple(oids))
        self._send_deferred()
        return super().execute_unnamed(statement, vals=vals, oids=oids, stream=stream)

    def _send_deferred(self) -> None:
        # The transaction has to be open for what follows.
        self._next_is_last = False
        if self._deferred:
            last = self._deferred.pop()
            self._run(last)

    def _run(self, statement: str, vals: Sequence[Any] = (), oids: Sequence[int] = ()) -> Any:
        params = pg8000.converters.make_params(self.py_types, vals)
        if self._sock is None:
            raise pg8000.dbapi.InterfaceError("connection is closed")
        if self._ended:
            raise pg8000.dbapi.ProgrammingError("the transaction ended with the statement before")
        known = self._prepared.pop((statement, oids), None)
        if known is not None:
            self._prepared[statement, oids] = known
            name = known.name
            context = pg8000.core.Context(
                statement, columns=known.columns, input_funcs=known.input_funcs
            )
        else:
            name = next(self._names) if params else b""
            context = pg8000.core.Context(statement)
            if name and len(self._prepared) >= _MAX_PREPARED:
                self._forget(next(iter(self._prepared)))
        messages = bytearray()
        for old in self._forgotten:
            messages += _message(b"C", b"S" + old + b"\0")
        for text in self._deferred:
            messages += self._parse(b"", text, ()) + self._bind(b"", ()) + _EXECUTE
        if known is None:
            messages += self._parse(name, statement, oids) + _message(b"D", b"S" + name + b"\0")
        messages += self._bind(name, params) + _EXECUTE
        if self._next_is_last:
            messages += self._parse(b"", "COMMIT", ()) + self._bind(b"", ()) + _EXECUTE
        messages += _SYNC
        self._ended = self._next_is_last
        self._deferred.clear()
        self._forgotten.clear()
        pg8000.core._write(self._sock, bytes(messages))
        pg8000.core._flush(self._sock)
        try:
            self.handle_messages(context)
        except pg8000.dbapi.DatabaseError as error:
            state = error.args[0].get("C", "")
            if known is None and name:
                # It may have been prepared all the same; closing what is not there is no error.
                self._forgotten.append(name)
            elif known is not None and state in _PREPARE_AGAIN:
                for each in list(self._prepared):
                    self._forget(each)
            if state.startswith(_CONSTRAINT_VIOLATION):
                # pg8000 has this class and never uses it.
                raise pg8000.dbapi.IntegrityError(*error.args) from None
            raise
        if known is None and name:
            self._prepared[statement, oids] = _Prepared(name, context.columns, context.input_funcs)
        return context

    def _forget(self, prepared: tuple[str, Sequence[int]]) -> None:
        self._forgotten.append(self._prepared.pop(prepared).name)

    # https://www.postgresql.org/docs/current/protocol-message-formats.html
    def _parse(self, name: bytes, statement: str, oids: Sequence[int]) -> bytes:
        types = b"".join(_int4(0 if oid == -1 else oid) for oid in oids)
        text = statement.encode(self._client_encoding)
        return _message(b"P", name + b"\0" + text + b"\0" + _int2(len(oids)) + types)

    def _bind(self, name: bytes, params: Sequence[str | None]) -> bytes:
        values = bytearray()
        for param in params:
            if param is None:
                values += _int4(-1)
            else:
                value = param.encode(self._client_encoding)
                values += _int4(len(value)) + value
        head = b"\0" + name + b"\0" + _int2(0) + _int2(len(params))
        return _message(b"B", head + bytes(values) + _int2(0))


class _Cursor(pg8000.dbapi.Cursor):  # type: ignore[misc]
    _input_oids: Sequence[int]
    input_types: Sequence[Any]

    def execute(self, operation: str, args: Sequence[Any] = (), stream: Any = None) -> None:
        if stream is not None or len(args) == 0 or self._c is None:
            super().execute(operation, args, stream=stream)
            return
        if not self._c._in_transaction and not self._c.autocommit:
            self._c.execute_simple(_BEGIN)
        self._context = self._c.execute_unnamed(
            _numbered(operation), vals=args, oids=self._input_oids
        )
        self._row_iter = None if self._context.rows is None else iter(self._context.rows)
        self._input_oids = ()
        self.input_types = []


@functools.lru_cache(256)
def _numbered(operation: str) -> str:
    """With $1, $2, … for each %s."""
    return str(pg8000.dbapi.convert_paramstyle("format", operation, ())[0])


def _message(kind: bytes, body: bytes) -> bytes:
    return kind + _int4(len(body) + 4) + body


def _int2(value: int) -> bytes:
    return value.to_bytes(2, "big")


def _int4(value: int) -> bytes:
    return value.to_bytes(4, "big", signed=True)


_EXECUTE = _message(b"E", b"\0" + _int4(0))
_SYNC = _message(b"S", b"")

"""Reads a template's rows from the adopter's database, at one point in time, in one stream.

A query runs as one COPY; where the template says how it can be split, two sessions read ranges of
one snapshot side by side and the stream stays in order. A stream that stops at some row can be
continued behind it, by another process and still in the same snapshot: `Export.hold` keeps the
snapshot alive until somebody else has taken it over.
"""

import contextlib
import csv
import dataclasses
import datetime as dt
import json
import queue
import socket
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pydantic
import sqlalchemy as sa

from jobplatform import copy_stream, csvfile, database, errors, faults, sqltext, templating
from jobplatform.jobs import ResultFormat

Write = copy_stream.Write
_FETCH_ROWS = 2_000
# Below this a second session costs more than it saves.
_SPLIT_ROWS = 200_000
_RANGE_BYTES = 12 * 2**20
_READERS = 2
# How far a reader may be ahead of the stream, in blocks of `copy_stream.BLOCK_BYTES`.
_BLOCKS_AHEAD = 64
# Splitting is worth it while reading all ranges costs less than this many times reading at once.
_SPLIT_COST = 3.0
_INTEGERS = frozenset({"smallint", "integer", "bigint"})


@dataclasses.dataclass(frozen=True)
class Position:
    """Where to go on: behind the row with these values of the template's order columns."""

    values: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class _Plan:
    rows: int
    bytes: int
    cost: float


class Session:
    """One connection in one read-only snapshot transaction; it never outlives its export.

    With `snapshot` it sees what the session that exported it sees; raises `SnapshotLost` when that
    is no longer there.
    """

    def __init__(
        self, address: Any, *, statement_timeout: dt.timedelta, snapshot: str | None = None
    ) -> None:
        self._address = address
        self._timeout = statement_timeout
        self._lock = threading.Lock()
        self._closed = False
        self.connection = database.connect(
            address,
            application_name="jobplatform-export",
            statement_timeout=str(int(statement_timeout.total_seconds() * 1000)),
            # A session that holds a snapshot for others may be idle for as long as they need.
            idle_in_transaction_session_timeout="0",
            **sqltext.SESSION,
        )
        for oid, read in sqltext.READERS.items():
            self.connection.register_in_adapter(oid, read)
        try:
            run = self.connection.run
            run("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            if snapshot is not None:
                self._import(snapshot)
            self.pid, self.as_of = run("SELECT pg_backend_pid(), now()")[0]
        except BaseException:
            self.close()
            raise

    def _import(self, snapshot: str) -> None:
        try:
            self.connection.run(f"SET TRANSACTION SNAPSHOT {sqltext.quote(snapshot)}")
        except database.DriverError as error:
            # Undefined object or file: its holder has let go.
            if database.sqlstate(error) in {"22023", "42704", "58P01", "55000"}:
                raise SnapshotLost from error
            raise

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def share(self) -> str:
        """A name by which other sessions can see the same snapshot while this one lives."""
        return str(self.connection.run("SELECT pg_export_snapshot()")[0][0])

    def sibling(self, snapshot: str) -> "Session":
        return Session(self._address, statement_timeout=self._timeout, snapshot=snapshot)

    def close(self) -> None:
        """Ends the session, from any thread. Not by a polite goodbye: a COPY may be under way.

        The socket is reset. Were it only shut, a server that is sending would wait for ever for
        somebody to read, and keep its snapshot and locks.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
        sock, stream = self.connection._usock, self.connection._sock
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            # Wakes a thread that reads, which the closing of its stream would wait for.
            sock.shutdown(socket.SHUT_RD)
        sock.close()
        with contextlib.suppress(OSError, ValueError):
            stream.close()

    def cancel(self) -> None:
        """Stops the query that runs, from another thread: it fails with SQLSTATE 57014."""
        if self._closed:
            return
        helper = database.connect(self._address, application_name="jobplatform-cancel")
        try:
            helper.run("SELECT pg_cancel_backend(:pid)", pid=self.pid)
        finally:
            helper.close()

    @contextlib.contextmanager
    def statement(self) -> Iterator[None]:
        """One statement. Where it took the time it may, raises `errors.QueryTooLong`.

        A statement that somebody cancelled has the same SQLSTATE, but took less.
        """
        began = time.monotonic()
        try:
            yield
        except database.DriverError as error:
            took = dt.timedelta(seconds=time.monotonic() - began)
            if database.sqlstate(error) == "57014" and took >= self._timeout:
                raise errors.QueryTooLong(
                    f"a statement took longer than {self._timeout}"
                ) from error
            raise

    def run(self, sql: str, **values: Any) -> list[Any]:
        with self.statement():
            return self.connection.run(sql, **values) or []

    def plan(self, query: str) -> _Plan:
        """The planner's guess of what a query answers and costs."""
        found = self.run("EXPLAIN (FORMAT JSON) " + query)[0][0][0]["Plan"]
        rows = int(found["Plan Rows"])
        return _Plan(rows, rows * int(found["Plan Width"]), float(found["Total Cost"]))

    def describe(self, query: str) -> tuple[templating.Column, ...]:
        """The columns of a query as the server names and types them."""
        self.run(f"SELECT * FROM ({query}) AS q LIMIT 0")
        found = self.connection.columns or []
        names = self.connection.run(
            "SELECT format_type(o, m) FROM unnest(CAST(:oids AS oid[]), CAST(:mods AS int4[]))"
            " WITH ORDINALITY AS t(o, m, n) ORDER BY n",
            oids=[column["type_oid"] for column in found],
            mods=[column["type_modifier"] for column in found],
        )
        return tuple(
            templating.Column(column["name"], name)
            for column, (name,) in zip(found, names, strict=True)
        )

    def read(self, statement: sa.Select[Any]) -> Iterator[Sequence[Any]]:
        """Streams a select by a cursor, rows as Python values."""
        run = self.run
        name = f"read_{id(statement):x}"
        run(f"DECLARE {name} NO SCROLL CURSOR FOR {sqltext.select(statement)}")
        while rows := run(f"FETCH {_FETCH_ROWS} FROM {name}"):
            yield from rows
        run(f"CLOSE {name}")


class SnapshotLost(errors.ExecutionError):
    """The snapshot that this export was to continue is gone."""

    code = "snapshot_lost"


class Export:
    """One export of one template. A context manager: it closes every session it opened.

    `snapshot` and `after` continue an earlier one; `as_of` is then that one's.
    """

    def __init__(
        self,
        address: Any,
        template: templating.Template,
        params: pydantic.BaseModel,
        *,
        format: ResultFormat,
        statement_timeout: dt.timedelta,
        snapshot: str | None = None,
        after: Position | None = None,
        as_of: dt.datetime | None = None,
    ) -> None:
        self._template = template
        self._params = params
        self._format = format
        self._after = after
        self._header = after is None and format is not ResultFormat.JSONL
        self._stopped = False
        self._sessions = [Session(address, statement_timeout=statement_timeout, snapshot=snapshot)]
        self.as_of: dt.datetime = as_of or self._sessions[0].as_of
        self.columns: tuple[templating.Column, ...] = template.columns
        self.rows_estimated: int | None = None
        self.bytes_estimated: int | None = None
        self.readers = 1
        self._query = ""
        self._condition: str | None = None
        self._plan: _Plan | None = None
        self._shared = ""

    def __enter__(self) -> "Export":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def can_continue(self) -> bool:
        """Whether the stream can be stopped at a row and continued behind it."""
        if not self._template.order or self._template.query is None:
            return False
        # The formula guard may have changed a text, which then is no place to go on from.
        guarded = self._format is ResultFormat.CSV_EXCEL
        kinds = {column.name: column.type for column in self.columns}
        texts = [name for name in self._template.order if sqltext.may_hold_text(kinds[name])]
        return not (guarded and texts)

    def close(self) -> None:
        self._stopped = True
        for session in self._sessions:
            session.close()

    def cancel(self) -> None:
        """Stops the reading, from another thread."""
        self._stopped = True
        for session in list(self._sessions):
            try:
                session.cancel()
            except Exception:
                session.close()

    def hold(self) -> Session:
        """A session that keeps the snapshot when this export is closed; the caller closes it.

        Works while the first session is in the middle of its COPY: the name under which it shares
        its snapshot was taken before that.
        """
        return self._sessions[0].sibling(self._shared)

    def position(self, last_row: bytes) -> Position:
        """The place behind a row of this stream."""
        text = last_row.decode()
        if self._format is ResultFormat.JSONL:
            # Each JSON line was quoted for CSV only where that changes nothing.
            found = json.loads(text, parse_int=str, parse_float=str)
            return Position(tuple(str(found[name]) for name in self._template.order))
        names = [column.name for column in self.columns]
        values = next(csv.reader([text], strict=True))
        return Position(tuple(values[names.index(name)] for name in self._template.order))

    def prepare(self) -> None:
        """Finds out columns and an estimate of the size. Raises `errors.TemplateRejected`."""
        if self._template.query is None:
            return
        session = self._sessions[0]
        order = self._template.order
        with _template_errors(self._template):
            statement = self._template.query(self._params)
            if order and not _is_limited(statement):
                statement = statement.order_by(None)
            self._query = sqltext.select(statement)
        self.columns = session.describe(self._query)
        kinds = {column.name: column.type for column in self.columns}
        missing = [name for name in order if name not in kinds]
        if missing:
            raise errors.TemplateRejected(
                f"template {self._template.name}: its order names {', '.join(missing)}, which its"
                " query does not answer"
            )
        if order:
            self._shared = session.share()
        self._condition = _behind(order, self._after, kinds)
        self._plan = session.plan(_ordered(self._query, order, self._condition))
        self.rows_estimated, self.bytes_estimated = self._plan.rows, self._plan.bytes

    def run(self, write: Write) -> None:
        """Writes every row, or those behind `after`, with a header before the first.

        `prepare` comes first. Raises `errors.TemplateRejected` for a ValueError of the template's
        own code and pg8000's errors for those of the database.
        """
        faults.point("export.started")
        if self._format is ResultFormat.CSV_EXCEL and self._after is None:
            write(csvfile.BOM, 0, b"")
        if self._template.query is None:
            self._run_rows(write)
            return
        write = self._without_header(write)
        ranges = self._ranges()
        if ranges:
            self._run_ranges(ranges, write)
        else:
            query = _ordered(self._query, self._template.order, self._condition)
            self._copy_out(self._sessions[0], self._copy(query, header=self._header), write)

    def _without_header(self, write: Write) -> Write:
        """Rows are counted without the header that the first block begins with."""
        first = self._header

        def counted(block: bytes, rows: int, last: bytes) -> None:
            nonlocal first
            faults.point("export.chunk")
            write(block, rows - 1 if first else rows, last)
            first = False

        return counted

    def _run_rows(self, write: Write) -> None:
        assert self._template.rows is not None
        with _template_errors(self._template):
            rows = self._template.rows(self._params, self._sessions[0].read)
            for block, count in csvfile.encode(rows, self.columns, self._format):
                write(block, count, b"")

    def _copy(self, query: str, *, header: bool) -> str:
        columns = [(column.name, column.type) for column in self.columns]
        return sqltext.copy(query, format=self._format, header=header, columns=columns)

    def _copy_out(self, session: Session, text: str, write: Write) -> None:
        crlf = self._format is ResultFormat.CSV_EXCEL
        with session.statement():
            copy_stream.copy_out(session.connection, text, write, crlf=crlf)

    def _ranges(self) -> list[str]:
        """Conditions that cut the query into ranges of even keys, in order; none: do not split."""
        key, plan = self._template.split_by, self._plan
        kinds = {column.name: column.type for column in self.columns}
        if key is None or plan is None or plan.rows < _SPLIT_ROWS or kinds[key] not in _INTEGERS:
            return []
        session = self._sessions[0]
        column = f"q.{sqltext.identifier(key)}"
        where = f" WHERE {self._condition}" if self._condition else ""
        low, high = session.run(
            f"SELECT min({column}), max({column}) FROM ({self._query}) AS q{where}"
        )[0]
        if low is None or high == low:
            return []
        count = max(_READERS, -(-plan.bytes // _RANGE_BYTES))
        width = max(1, -(-(high - low + 1) // count))
        also = f" AND {self._condition}" if self._condition else ""
        ranges = [
            f"{column} >= ({start}) AND {column} < ({start + width}){also}"
            for start in range(low, high + 1, width)
        ]
        one = session.plan(_ordered(self._query, self._template.order, ranges[len(ranges) // 2]))
        # Where one range costs as much as all (no index on the key), reading at once is better.
        return ranges if one.cost * len(ranges) < plan.cost * _SPLIT_COST else []

    def _run_ranges(self, ranges: list[str], write: Write) -> None:
        """Two sessions read every other range; their blocks go out in the order of the ranges."""
        texts = [
            self._copy(
                _ordered(self._query, self._template.order, condition),
                header=self._header and index == 0,
            )
            for index, condition in enumerate(ranges)
        ]
        while len(self._sessions) < _READERS:
            self._sessions.append(self._sessions[0].sibling(self._shared))
        self.readers = _READERS
        lanes: list[queue.Queue[Any]] = [queue.Queue(_BLOCKS_AHEAD) for _ in range(_READERS)]
        threads = [
            threading.Thread(
                target=self._read_lane,
                args=(self._sessions[lane], texts[lane::_READERS], lanes[lane]),
                name=f"read-{lane}",
                daemon=True,
            )
            for lane in range(_READERS)
        ]
        for thread in threads:
            thread.start()
        try:
            for index in range(len(ranges)):
                lane = lanes[index % _READERS]
                while (item := lane.get()) is not None:
                    if isinstance(item, BaseException):
                        raise item
                    write(*item)
        finally:
            # Readers that are still at work are not wanted any more: an error, or a hand-over.
            if any(thread.is_alive() for thread in threads):
                self._stopped = True
                for session in self._sessions:
                    session.close()
                for lane, thread in zip(lanes, threads, strict=True):
                    while thread.is_alive():
                        _drain(lane)
                        thread.join(0.01)

    def _read_lane(self, session: Session, texts: list[str], lane: "queue.Queue[Any]") -> None:
        def put(block: bytes, rows: int, last: bytes) -> None:
            if self._stopped:
                raise errors.ExecutionError("the export was stopped")
            lane.put((block, rows, last))

        try:
            for text in texts:
                self._copy_out(session, text, put)
                lane.put(None)
        except BaseException as error:
            lane.put(error)


def _drain(lane: "queue.Queue[Any]") -> None:
    while True:
        try:
            lane.get_nowait()
        except queue.Empty:
            return


def _is_limited(statement: sa.Select[Any]) -> bool:
    """Whether the statement's own order decides which rows it has."""
    return (
        statement._limit_clause is not None
        or statement._offset_clause is not None
        or statement._fetch_clause is not None
        or bool(getattr(statement, "_distinct_on", ()))
    )


def _ordered(query: str, order: Sequence[str], condition: str | None) -> str:
    if not order:
        return query
    where = f" WHERE {condition}" if condition else ""
    keys = ", ".join(f"q.{sqltext.identifier(name)}" for name in order)
    return f"SELECT * FROM ({query}) AS q{where} ORDER BY {keys}"


def _behind(order: Sequence[str], after: Position | None, kinds: dict[str, str]) -> str | None:
    """The condition for rows behind a position, by comparing the whole tuple."""
    if after is None:
        return None
    keys = ", ".join(f"q.{sqltext.identifier(name)}" for name in order)
    values = ", ".join(
        f"CAST({sqltext.quote(value)} AS {kinds[name]})"
        for name, value in zip(order, after.values, strict=True)
    )
    return f"({keys}) > ({values})"


class _template_errors:
    """A ValueError or TypeError of the adopter's code refuses the parameters for good."""

    def __init__(self, template: templating.Template) -> None:
        self._name = template.name

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if isinstance(error, ValueError | TypeError):
            raise errors.TemplateRejected(f"template {self._name}: {error}") from error

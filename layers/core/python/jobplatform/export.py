"""Reads a template's rows from the adopter's database, at one point in time, in one stream.

A query runs as one COPY; where the template says how it can be split, two sessions read ranges of
one snapshot side by side and the stream stays in order. A stream that stops at some row can be
continued behind it, by another process and still in the same snapshot: `Export.hold` keeps the
snapshot alive until somebody else has taken it over.
"""

import contextlib
import dataclasses
import datetime as dt
import hashlib
import itertools
import json
import queue
import re
import socket
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import pydantic
import sqlalchemy as sa

from jobplatform import copy_stream, csvfile, database, errors, faults, sqltext, templating
from jobplatform.jobs import ResultFormat

Write = copy_stream.Write
_FETCH_ROWS = 2_000
# Below this a second session costs more than it saves.
_SPLIT_ROWS = 200_000
_RANGE_BYTES = 6 * 2**20
_READERS = 2
# How far a reader may be ahead of the stream, in blocks of `copy_stream.BLOCK_BYTES`.
_BLOCKS_AHEAD = 16
# Splitting is worth it while reading all ranges costs less than this many times reading at once.
_SPLIT_COST = 3.0
_INTEGERS = frozenset({"smallint", "integer", "bigint"})
_MOST_RANGES = 100_000
# How long to wait for a table that somebody changes. A session of an export that has begun waits
# less: who wants to change the table may be waiting for that export.
_LOCK_WAIT = dt.timedelta(minutes=2)
_SIBLING_LOCK_WAIT = dt.timedelta(seconds=15)
# One field as COPY writes it: in quotation marks, or without any.
_field = re.compile(r'(?:"([^"]*(?:""[^"]*)*)"|([^,]*))(?:,|\Z)').match
_LINE_END = b"\n"
# What in a plan, apart from functions, may answer otherwise in another session of one snapshot: the
# time, another server, and partitions that were left out by the time.
_VARIES = re.compile(
    r"\b(?:CURRENT_(?:DATE|TIME|TIMESTAMP)|LOCALTIME(?:STAMP)?)\b|^Foreign Scan$"
).search
# Of text that becomes a time, PostgreSQL makes one before there is a plan.
_TIME_AS_TEXT = re.compile(
    r"'\s*(?:now|today|tomorrow|yesterday)\b[\d\s:.]*'", re.IGNORECASE
).search
_SQL_TEXT = re.compile(r"'(?:[^']|'')*'")
_called = re.compile(r'(\w+|"(?:[^"]|"")+") ?\(').findall
# Volatile functions, and stable ones that say the time: now() and its like, or whose text does.
_VARYING_FUNCTION = r"""
SELECT EXISTS (
    SELECT FROM pg_proc WHERE proname = ANY(CAST(:names AS text[])) AND (
        provolatile = 'v' OR provolatile = 's'
        -- A body as the SQL standard has it is not in prosrc.
        AND concat(prosrc, CASE WHEN prokind IN ('f', 'p') THEN pg_get_functiondef(oid) END)
            ~* '\m(now|timeofday|current_(date|time)|'
            '(current|transaction|statement|clock)_timestamp|localtime(stamp)?)\M'
    )
)
"""


@dataclasses.dataclass(frozen=True)
class Position:
    """Where to go on: behind the row with these values of the template's order columns."""

    values: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class _Plan:
    rows: int
    bytes: int
    cost: float
    node: dict[str, Any]
    """As EXPLAIN shows it, with the nodes below it in `Plans`."""


# From PostgreSQL 17 on: a transaction may last, also one that only holds a snapshot. From 14 on,
# where the system can tell: the query of a worker that has died ends soon.
_SETTINGS_THAT_MAY_BE_UNKNOWN = """
SELECT set_config(name, value, false)
FROM (
    VALUES ('transaction_timeout', '0', ''), ('client_connection_check_interval', '10s', 'linux')
) AS s (name, value, system)
WHERE current_setting(name, true) IS NOT NULL AND strpos(version(), system) > 0
"""


class Snapshot(NamedTuple):
    """A snapshot that other sessions can see while the one that shared it lives."""

    name: str
    identity: str
    """Names come again after a restart of the server, and then name another snapshot."""


class Kept:
    """At most one connection that an export is through with, for the next one.

    To connect takes as long as a small export. Whoever runs exports one after the other closes it
    in the end: a function that is frozen between invocations would hold it for nobody.
    """

    def __init__(self) -> None:
        self._connection: Any = None

    def take(self) -> Any:
        connection, self._connection = self._connection, None
        return connection

    def put(self, connection: Any) -> None:
        self.close()
        self._connection = connection

    def close(self) -> None:
        if self._connection is not None:
            _reset(self.take())


class Session:
    """One connection in one read-only snapshot transaction; it never outlives its export.

    With `snapshot` it sees what the session that shared it sees; raises `SnapshotLost` when that
    is no longer there. Its connection comes from `kept` where there is one that works.
    """

    def __init__(
        self,
        address: Any,
        *,
        statement_timeout: dt.timedelta,
        snapshot: Snapshot | None = None,
        kept: Kept | None = None,
    ) -> None:
        self._address = address
        self._timeout = statement_timeout
        self._lock = threading.Lock()
        self._letting_go = threading.Lock()
        self._closed = False
        self._stopped = False
        self._cursors = itertools.count()
        self._done_cursors: list[str] = []
        if (connection := kept and kept.take()) is not None:
            try:
                self._begin(connection, snapshot)
                return
            except BaseException as error:
                _reset(connection)
                if not isinstance(error, (*_DRIVER_ERRORS, OSError)):
                    raise
        connection = _connect(address)
        try:
            connection.run(_SETTINGS_THAT_MAY_BE_UNKNOWN)
            self._begin(connection, snapshot)
        except BaseException:
            _reset(connection)
            raise

    def _begin(self, connection: Any, snapshot: Snapshot | None) -> None:
        lock_wait = _SIBLING_LOCK_WAIT if snapshot else _LOCK_WAIT
        begin = (
            "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;"
            f" SET LOCAL statement_timeout = {_milliseconds(self._timeout)};"
            f" SET LOCAL lock_timeout = {_milliseconds(lock_wait)};"
        )
        if snapshot is not None:
            connection.run(begin)
            _import(connection, snapshot.name)
            begin = ""
        self.pid, self.as_of, self._identity = connection.run(
            f"{begin} SELECT pg_backend_pid(), now(),"
            " md5(concat(pg_postmaster_start_time(), pg_current_snapshot()))"
        )[0]
        if snapshot is not None and snapshot.identity != self._identity:
            raise SnapshotLost
        self.connection = connection

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def share(self) -> Snapshot:
        return Snapshot(
            str(self.connection.run("SELECT pg_export_snapshot()")[0][0]), self._identity
        )

    def sibling(self, snapshot: Snapshot) -> "Session":
        return Session(self._address, statement_timeout=self._timeout, snapshot=snapshot)

    def close(self) -> None:
        """Ends the session, from any thread."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        _reset(self.connection)

    def let_go(self, kept: Kept) -> None:
        """Ends the transaction and keeps the connection; where that cannot be, ends the session."""
        # Nobody may cancel what runs on it afterwards.
        with self._letting_go:
            if self._stopped or self._closed:
                self.close()
                return
            try:
                self.connection.run("ROLLBACK; SELECT pg_advisory_unlock_all()")
            except (*_DRIVER_ERRORS, OSError):
                self.close()
                return
            self._closed = True
        kept.put(self.connection)

    def cancel(self) -> None:
        """Stops the query that runs, from another thread: it fails with SQLSTATE 57014.

        No other begins after it.
        """
        self._stopped = True
        with self._letting_go:
            if self._closed:
                return
            helper = database.connect(self._address, application_name="jobplatform-cancel")
            helper._usock.settimeout(database.CONNECT_TIMEOUT)
            try:
                helper.run("SELECT pg_cancel_backend(:pid)", pid=self.pid)
            finally:
                helper.close()

    @contextlib.contextmanager
    def statement(self) -> Iterator[None]:
        """One statement. Where it took the time it may, raises `errors.QueryTooLong`.

        A statement that somebody cancelled has the same SQLSTATE, but took less.
        """
        if self._stopped:
            raise errors.ExecutionError("the export was stopped")
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
        except ValueError as error:
            # What reads from a closed stream; the template is not at fault.
            if self._closed:
                raise errors.ExecutionError("the export was stopped") from error
            raise

    def run(self, sql: str, **values: Any) -> list[Any]:
        with self.statement():
            return self.connection.run(sql, **values) or []

    def plan(self, query: str) -> _Plan:
        """The planner's guess of what a query answers and costs."""
        found = self.run("EXPLAIN (VERBOSE, FORMAT JSON) " + query)[0][0][0]["Plan"]
        rows = int(found["Plan Rows"])
        return _Plan(rows, rows * int(found["Plan Width"]), float(found["Total Cost"]), found)

    def varies(self, query: str, plan: _Plan) -> bool:
        """Whether a query may have other rows in another session of the same snapshot.

        Not seen is what a stable function, other than by its own text, has from another function.
        """
        if _TIME_AS_TEXT(query):
            return True
        names: set[str] = set()
        for key, text in _texts(plan.node):
            expression = _SQL_TEXT.sub("''", text)
            if key in {"Subplans Removed", "Sampling Method"} or _VARIES(expression):
                return True
            names |= {
                name[1:-1].replace('""', '"') if name.startswith('"') else name
                for name in _called(expression)
            }
        return bool(names) and bool(self.run(_VARYING_FUNCTION, names=sorted(names))[0][0])

    def describe(self, query: str) -> tuple[templating.Column, ...]:
        """The columns of a query as the server names and types them."""
        self.run(f"SELECT * FROM ({query}) AS q LIMIT 0")
        found = self.connection.columns or []
        names = self._type_names({_type_of(column) for column in found})
        return tuple(templating.Column(column["name"], names[_type_of(column)]) for column in found)

    def _type_names(self, types: set[tuple[int, int]]) -> dict[tuple[int, int], str]:
        """By oid and modifier. Those that come with PostgreSQL are asked for once a process."""
        if new := sorted(types - _TYPE_NAMES.keys()):
            rows = self.connection.run(
                "SELECT format_type(o, m) FROM unnest(CAST(:oids AS oid[]), CAST(:mods AS int4[]))"
                " WITH ORDINALITY AS t(o, m, n) ORDER BY n",
                oids=[oid for oid, _ in new],
                mods=[modifier for _, modifier in new],
            )
            asked = {one: str(name) for one, (name,) in zip(new, rows, strict=True)}
            _TYPE_NAMES.update({one: asked[one] for one in new if one[0] < _FIRST_OF_OTHERS})
            return {**_TYPE_NAMES, **asked}
        return _TYPE_NAMES

    def read(self, statement: sa.Select[Any]) -> Iterator[Sequence[Any]]:
        """Streams a select by a cursor, rows as Python values."""
        query = sqltext.select(statement)
        name = f"read_{next(self._cursors)}"
        done = "".join(f"CLOSE {self._done_cursors.pop()};" for _ in self._done_cursors[:])
        self.run(f"{done}DECLARE {name} NO SCROLL CURSOR FOR {query}")
        try:
            while rows := self.run(f"FETCH {_FETCH_ROWS} FROM {name}"):
                yield from rows
        finally:
            # Not at once: Python may end a generator while another statement is under way.
            self._done_cursors.append(name)


_DRIVER_ERRORS = (database.DriverError, database.InterfaceError)
_TYPE_NAMES: dict[tuple[int, int], str] = {}
# The first number that a type of somebody else can have.
_FIRST_OF_OTHERS = 16384


def _type_of(column: dict[str, Any]) -> tuple[int, int]:
    return column["type_oid"], column["type_modifier"]


def _connect(address: Any) -> Any:
    try:
        connection = database.connect(
            address,
            application_name="jobplatform-export",
            # A session that holds a snapshot for others may be idle for as long as they need.
            idle_in_transaction_session_timeout="0",
            **sqltext.SESSION,
        )
    except database.DriverError as error:
        # While a password is changed or a server replaced; the query is not at fault.
        state = database.sqlstate(error) or ""
        if state.startswith("28") or state == "3D000":
            raise ConnectionError(*error.args) from error
        raise
    for oid, read in sqltext.READERS.items():
        connection.register_in_adapter(oid, read)
    return connection


def _import(connection: Any, name: str) -> None:
    try:
        connection.run(f"SET TRANSACTION SNAPSHOT {sqltext.quote(name)}")
    except database.DriverError as error:
        # Undefined object or file: its holder has let go.
        if database.sqlstate(error) in {"22023", "42704", "58P01", "55000"}:
            raise SnapshotLost from error
        raise


def _reset(connection: Any) -> None:
    """Ends a connection. Not by a polite goodbye: a COPY may be under way.

    The socket is reset. Were it only shut, a server that is sending would wait for ever for
    somebody to read, and keep its snapshot and locks.
    """
    sock, stream = connection._usock, connection._sock
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        # Wakes a thread that reads, which the closing of its stream would wait for.
        sock.shutdown(socket.SHUT_RD)
    sock.close()
    with contextlib.suppress(OSError, ValueError):
        stream.close()


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
        snapshot: Snapshot | None = None,
        after: Position | None = None,
        as_of: dt.datetime | None = None,
        kept: Kept | None = None,
    ) -> None:
        self._template = template
        self._params = params
        self._format = format
        self._after = after
        self._header = after is None and format is not ResultFormat.JSONL
        self._stopped = False
        self._kept = kept
        self._sessions = [
            Session(address, statement_timeout=statement_timeout, snapshot=snapshot, kept=kept)
        ]
        self.as_of: dt.datetime = as_of or self._sessions[0].as_of
        self._began = time.monotonic()
        self._closed_at: float | None = None
        # By the clock of the database, which took the snapshot.
        self._age_before = self._sessions[0].as_of - self.as_of if snapshot else dt.timedelta(0)
        self._continued = snapshot is not None
        self._found = False
        self._is_through = False
        self.columns: tuple[templating.Column, ...] = template.columns
        self.rows_estimated: int | None = None
        self.bytes_estimated: int | None = None
        self.readers = 1
        self._query = ""
        self._varies = False
        self._condition: str | None = None
        self._plan: _Plan | None = None
        self._shared: Snapshot | None = None

    def __enter__(self) -> "Export":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def can_continue(self) -> bool:
        """Whether the stream can be stopped at a row and continued behind it."""
        if not self._template.order or self._template.query is None:
            return False
        if self._varies and self._template.consistency == "snapshot":
            return False
        kinds = {column.name: column.type for column in self.columns}
        order = [kinds[name] for name in self._template.order]
        match self._format:
            case ResultFormat.CSV_EXCEL:
                # The guard may have changed a text, which then is no place to go on from.
                return not any(map(sqltext.may_hold_text, order))
            case ResultFormat.JSONL:
                # Values in values: their JSON is not what PostgreSQL would read.
                return not any(kind.endswith("]") or kind == "jsonb" for kind in order)
            case _:
                return True

    @property
    def query_digest(self) -> str:
        """SHA-256 of what the query says; the order of its words is left out.

        A set among the parameters has another order in each process.
        """
        words = re.findall(r"[^\s,()]+", self._query)
        return hashlib.sha256(" ".join(sorted(words)).encode()).hexdigest()

    @property
    def snapshot_age(self) -> dt.timedelta:
        """For how long the snapshot has been kept, by whomever."""
        until = time.monotonic() if self._closed_at is None else self._closed_at
        return self._age_before + dt.timedelta(seconds=until - self._began)

    @property
    def is_open(self) -> bool:
        return self._closed_at is None

    def close(self) -> None:
        if self._kept is not None and self._is_through:
            self._sessions[0].let_go(self._kept)
        self._closed_at = self._closed_at or time.monotonic()
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
        its snapshot was taken before that. It keeps the tables from being changed, too: a snapshot
        does not show what a table held before a TRUNCATE or a rewriting ALTER TABLE.
        """
        assert self._shared is not None
        holder = self._sessions[0].sibling(self._shared)
        try:
            holder.run(f"SELECT FROM ({self._query}) AS q LIMIT 0")
        except BaseException:
            holder.close()
            raise
        return holder

    def position(self, last_row: bytes) -> Position:
        """The place behind a row of this stream. Raises `errors.TemplateRejected` for a NULL."""
        line = last_row.decode().removesuffix("\n").removesuffix("\r")
        found: dict[str, str | None]
        if self._format is ResultFormat.JSONL:
            # Each JSON line was quoted for CSV only where that changes nothing.
            read = json.loads(line, parse_int=str, parse_float=str)
            found = {key: None if value is None else str(value) for key, value in read.items()}
        else:
            found = dict(zip((column.name for column in self.columns), _fields(line), strict=True))
        values: list[str] = []
        for name in self._template.order:
            value = found[name]
            if value is None:
                raise errors.TemplateRejected(
                    f"template {self._template.name}: {name}, which its order names, is NULL"
                )
            values.append(value)
        return Position(tuple(values))

    def prepare(self) -> None:
        """Finds out columns and an estimate of the size. Raises `errors.TemplateRejected`."""
        if self._template.query is None:
            return
        session = self._sessions[0]
        order = self._template.order
        with _template_errors(self._template):
            statement = self._template.query(self._params)
            if _is_limited(statement):
                # Without an order of its own, any rows will do.
                self._varies = not statement._order_by_clauses
            elif order:
                statement = statement.order_by(None)
            self._query = sqltext.select(statement, now=self.as_of)
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
        self._condition = _from(order, self._after, kinds)
        query = _ordered(self._query, order, self._condition)
        self._plan = session.plan(query)
        if order:
            self._varies = self._varies or session.varies(query, self._plan)
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
            self._is_through = True
            return
        write = self._without_header(write) if self._after is None else self._behind(write)
        ranges = self._ranges()
        if ranges:
            self._run_ranges(ranges, write)
        else:
            query = _ordered(self._query, self._template.order, self._condition)
            self._copy_out(self._sessions[0], self._copy(query, header=self._header), write)
        if self._continued and not self._found:
            raise self._order_rejected()
        self._is_through = True

    def _without_header(self, write: Write) -> Write:
        """Rows are counted without the header that the first block begins with."""
        first = self._header

        def counted(block: bytes, rows: int, last: bytes) -> None:
            nonlocal first
            faults.point("export.chunk")
            write(block, rows - 1 if first else rows, last)
            first = False

        return counted

    def _behind(self, write: Write) -> Write:
        """Leaves out the row that was the last one before, with which the query begins again.

        So it is seen whether the order names one place. Raises `errors.TemplateRejected` where the
        next row has the same values, or where that row is not there though nothing changed.
        """
        seen = 0

        def checked(block: bytes, rows: int, last: bytes) -> None:
            nonlocal seen
            faults.point("export.chunk")
            while rows and seen < 2:
                end = self._end_of_row(block)
                same = self.position(block[:end]) == self._after
                if same if seen else self._continued and not same:
                    raise self._order_rejected()
                self._found = True
                seen += 1 if same else 2
                if not same:
                    break
                block, rows = block[end:], rows - 1
            if rows:
                write(block, rows, last)

        return checked

    def _order_rejected(self) -> errors.TemplateRejected:
        return errors.TemplateRejected(
            f"template {self._template.name}: its order does not say which row is next;"
            " its columns have to be unique together, and the same each time"
        )

    def _end_of_row(self, block: bytes) -> int:
        end = block.index(_LINE_END) + 1
        if self._format is not ResultFormat.JSONL:
            # A line end within a text has an odd number of quotation marks before it.
            marks, start = block.count(b'"', 0, end), end
            while marks % 2:
                start, end = end, block.index(_LINE_END, end) + 1
                marks += block.count(b'"', start, end)
        return end

    def _run_rows(self, write: Write) -> None:
        assert self._template.rows is not None
        with _template_errors(self._template):
            rows = self._template.rows(self._params, self._sessions[0].read)
        blocks = csvfile.encode(rows, self.columns, self._format)
        while True:
            with _template_errors(self._template):
                block = next(blocks, None)
            if block is None:
                return
            write(*block, b"")

    def _copy(self, query: str, *, header: bool) -> str:
        columns = [(column.name, column.type) for column in self.columns]
        return sqltext.copy(query, format=self._format, header=header, columns=columns)

    def _copy_out(self, session: Session, text: str, write: Write) -> None:
        crlf = self._format is ResultFormat.CSV_EXCEL
        with session.statement():
            copy_stream.copy_out(session.connection, text, write, crlf=crlf)

    def _ranges(self) -> range:
        """The first keys of ranges that cut the query evenly, in order; none: do not split."""
        key, plan = self._template.split_by, None if self._varies else self._plan
        kinds = {column.name: column.type for column in self.columns}
        none = range(0)
        if key is None or plan is None or plan.rows < _SPLIT_ROWS or kinds[key] not in _INTEGERS:
            return none
        session = self._sessions[0]
        column = f"q.{sqltext.identifier(key)}"
        # Where finding one key costs about as much as reading all, there is no index on it.
        one_key = session.plan(f"SELECT FROM ({self._query}) AS q WHERE {column} = 0")
        if one_key.cost > plan.cost / 2:
            return none
        where = f" WHERE {self._condition}" if self._condition else ""
        low, high, has_null = session.run(
            f"SELECT min({column}), max({column}),"
            f" EXISTS (SELECT FROM ({self._query}) AS q WHERE {column} IS NULL)"
            f" FROM ({self._query}) AS q{where}"
        )[0]
        # NULL is in no range.
        if low is None or high == low or has_null:
            return none
        count = min(_MOST_RANGES, max(_READERS, -(-plan.bytes // _RANGE_BYTES)))
        ranges = range(low, high + 1, -(-(high - low + 1) // count))
        one = session.plan(self._range_query(ranges, len(ranges) // 2))
        return ranges if one.cost * len(ranges) < plan.cost * _SPLIT_COST else none

    def _range_query(self, ranges: range, index: int) -> str:
        assert self._template.split_by is not None
        column = f"q.{sqltext.identifier(self._template.split_by)}"
        start = ranges[index]
        condition = f"{column} >= ({start}) AND {column} < ({start + ranges.step})"
        if self._condition:
            condition = f"{condition} AND {self._condition}"
        return _ordered(self._query, self._template.order, condition)

    def _run_ranges(self, ranges: range, write: Write) -> None:
        """Two sessions read every other range; their blocks go out in the order of the ranges."""
        assert self._shared is not None
        while len(self._sessions) < _READERS:
            self._sessions.append(self._sessions[0].sibling(self._shared))
        self.readers = _READERS
        lanes: list[queue.Queue[Any]] = [queue.Queue(_BLOCKS_AHEAD) for _ in range(_READERS)]
        threads = [
            threading.Thread(
                target=self._read_lane,
                args=(self._sessions[lane], ranges, lane, lanes[lane]),
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

    def _read_lane(
        self, session: Session, ranges: range, first: int, lane: "queue.Queue[Any]"
    ) -> None:
        def put(block: bytes, rows: int, last: bytes) -> None:
            if self._stopped:
                raise errors.ExecutionError("the export was stopped")
            lane.put((block, rows, last))

        try:
            for index in range(first, len(ranges), _READERS):
                query = self._range_query(ranges, index)
                header = self._header and index == 0
                self._copy_out(session, self._copy(query, header=header), put)
                lane.put(None)
        except BaseException as error:
            lane.put(error)


def _drain(lane: "queue.Queue[Any]") -> None:
    while True:
        try:
            lane.get_nowait()
        except queue.Empty:
            return


def _texts(node: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text in a plan, with its key; of numbers only partitions that were left out."""
    match node:
        case str():
            yield key, node
        case list():
            for item in node:
                yield from _texts(item, key)
        case dict():
            for name, value in node.items():
                yield from _texts(value, name)
        case int() if node and key == "Subplans Removed":
            yield key, ""


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


def _from(order: Sequence[str], after: Position | None, kinds: dict[str, str]) -> str | None:
    """The condition for a row and those behind it, by comparing the whole tuple."""
    if after is None:
        return None
    keys = ", ".join(f"q.{sqltext.identifier(name)}" for name in order)
    values = ", ".join(
        f"CAST({sqltext.quote(value)} AS {kinds[name]})"
        for name, value in zip(order, after.values, strict=True)
    )
    return f"({keys}) >= ({values})"


def _fields(line: str) -> Iterator[str | None]:
    """The fields of a row of CSV, which COPY wrote: NULL is nothing, an empty text is `""`."""
    position = 0
    while True:
        found = _field(line, position)
        assert found is not None
        quoted, plain = found.groups()
        yield quoted.replace('""', '"') if quoted is not None else plain or None
        if not found[0].endswith(","):
            return
        position = found.end()


def _milliseconds(time: dt.timedelta) -> str:
    return str(int(time.total_seconds() * 1000))


class _template_errors:
    """A ValueError or TypeError of the adopter's code refuses the parameters for good."""

    def __init__(self, template: templating.Template) -> None:
        self._name = template.name

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if isinstance(error, ValueError | TypeError):
            raise errors.TemplateRejected(f"template {self._name}: {error}") from error

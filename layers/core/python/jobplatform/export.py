"""Reads a template's rows from the adopter's database, at one point in time, into a writer."""

import dataclasses
import datetime as dt
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pydantic
import sqlalchemy as sa

from jobplatform import copy_stream, csvfile, database, errors, sqltext, templating
from jobplatform.jobs import ResultFormat

Write = Callable[[bytes, int], None]
_FETCH_ROWS = 2_000


@dataclasses.dataclass(frozen=True)
class Exported:
    """How an export ended: whether its first row is a header, its point in time, its columns."""

    header_rows: int
    as_of: dt.datetime
    columns: tuple[templating.Column, ...]


class Source:
    """A connection to the adopter's data, for one export. A context manager: it never outlives the export."""

    def __init__(self, address: Any, *, statement_timeout: dt.timedelta) -> None:
        self._address = address
        self._connection = database.connect(
            address,
            application_name="jobplatform-export",
            statement_timeout=str(int(statement_timeout.total_seconds() * 1000)),
            idle_in_transaction_session_timeout="0",
            **{name: value for name, value in sqltext.SESSION.items() if name != "client_encoding"},
        )
        self._pid = self._connection.run("SELECT pg_backend_pid()")[0][0]
        self._closed = threading.Lock()
        self._is_closed = False

    def __enter__(self) -> "Source":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the session. Not by a polite goodbye: the connection may be in the middle of a COPY."""
        with self._closed:
            if self._is_closed:
                return
            self._is_closed = True
        usock = self._connection._usock
        try:
            usock.shutdown(2)
        except OSError:
            pass
        finally:
            usock.close()

    def cancel(self) -> None:
        """Stops the query that runs, from another thread; the export then fails with SQLSTATE 57014."""
        with self._closed:
            if self._is_closed:
                return
        helper = database.connect(self._address, application_name="jobplatform-cancel")
        try:
            helper.run("SELECT pg_cancel_backend(:pid)", pid=self._pid)
        finally:
            helper.close()

    def estimate(self, statement: sa.Select[Any]) -> int | None:
        """The planner's guess of the rows, for the progress in percent."""
        plan = self._connection.run("EXPLAIN (FORMAT JSON) " + sqltext.select(statement))
        try:
            return int(plan[0][0][0]["Plan"]["Plan Rows"])
        except (IndexError, KeyError, TypeError):
            return None

    def export(
        self,
        template: templating.Template,
        params: pydantic.BaseModel,
        *,
        format: ResultFormat,
        write: Write,
        estimated: Callable[[int], None],
    ) -> Exported:
        """Writes every row of the template at one point in time.

        Raises `errors.TemplateRejected` for a ValueError of the template's own code, pg8000's errors for the database's.
        """
        run = self._connection.run
        run("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        as_of = run("SELECT now()")[0][0]
        if format is ResultFormat.CSV_EXCEL:
            write(csvfile.BOM, 0)
        if template.query is not None:
            header, columns = self._copy(template, params, format, write, estimated)
        else:
            columns = template.columns
            header = 0
            for chunk, count in self._encoded(template, params, format):
                write(chunk, count)
        run("COMMIT")
        return Exported(header, as_of, columns)

    def _copy(
        self,
        template: templating.Template,
        params: pydantic.BaseModel,
        format: ResultFormat,
        write: Write,
        estimated: Callable[[int], None],
    ) -> tuple[int, tuple[templating.Column, ...]]:
        assert template.query is not None
        with _template_errors(template):
            statement = template.query(params)
            query = sqltext.select(statement)
        columns = self.describe(query)
        guess = self.estimate(statement)
        if guess is not None:
            estimated(guess)
        text = sqltext.copy(
            query,
            format=format,
            header=True,
            columns=[(column.name, column.type) for column in columns],
        )
        copy_stream.copy_out(self._connection, text, write, crlf=format is ResultFormat.CSV_EXCEL)
        return (0 if format is ResultFormat.JSONL else 1), columns

    def describe(self, query: str) -> tuple[templating.Column, ...]:
        """The columns of a query as the server names and types them."""
        self._connection.run(f"SELECT * FROM ({query}) AS q LIMIT 0")
        found = self._connection.columns or []
        names = self._connection.run(
            "SELECT format_type(o, m) FROM unnest(CAST(:oids AS oid[]), CAST(:mods AS int4[]))"
            " WITH ORDINALITY AS t(o, m, n) ORDER BY n",
            oids=[column["type_oid"] for column in found],
            mods=[column["type_modifier"] for column in found],
        )
        return tuple(
            templating.Column(column["name"], name)
            for column, (name,) in zip(found, names, strict=True)
        )

    def _encoded(
        self, template: templating.Template, params: pydantic.BaseModel, format: ResultFormat
    ) -> Iterator[tuple[bytes, int]]:
        assert template.rows is not None
        with _template_errors(template):
            yield from csvfile.encode(template.rows(params, self._read), template.columns, format)

    def _read(self, statement: sa.Select[Any]) -> Iterator[Sequence[Any]]:
        """Streams a select by a cursor of the same snapshot."""
        run = self._connection.run
        name = f"read_{id(statement):x}"
        run(f"DECLARE {name} NO SCROLL CURSOR FOR {sqltext.select(statement)}")
        while rows := run(f"FETCH {_FETCH_ROWS} FROM {name}"):
            yield from rows
        run(f"CLOSE {name}")


class _template_errors:
    """A ValueError or TypeError of the adopter's code refuses the parameters for good."""

    def __init__(self, template: templating.Template) -> None:
        self._name = template.name

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if isinstance(error, ValueError | TypeError):
            raise errors.TemplateRejected(f"template {self._name}: {error}") from error

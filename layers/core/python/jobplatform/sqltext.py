"""A SQLAlchemy select as the text of a COPY, which takes no bind parameters.

Every value becomes a literal in `literal`, the only such place; hostile values are thrown at it in the tests.
"""

import datetime as dt
import decimal
import enum
import json
import math
import uuid
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import base

from jobplatform.jobs import ResultFormat

# Same bytes for the same data, whatever the server's or the role's defaults are.
SESSION = {
    "DateStyle": "ISO, YMD",
    "IntervalStyle": "postgres",
    "TimeZone": "UTC",
    "extra_float_digits": "1",
    "bytea_output": "hex",
    "standard_conforming_strings": "on",
    "client_encoding": "UTF8",
}

TEXT_TYPES = frozenset({"text", "character varying", "character", "name", '"char"'})
_FORMULA = r"^[=+\-@\t\r]"


def literal(value: Any) -> str:
    """A value as a PostgreSQL literal.

    Relies on `standard_conforming_strings`, which `SESSION` switches on: a quote is the only special character.
    Raises ValueError for text with a NUL, which PostgreSQL cannot hold, and TypeError for types it does not know.
    """
    match value:
        case None:
            return "NULL"
        case bool():
            return "TRUE" if value else "FALSE"
        case enum.Enum():
            return literal(value.value)
        case int():
            # In parentheses, or `- -1` would start a comment.
            return f"({int(value)})"
        case float():
            if math.isfinite(value):
                return f"CAST({quote(repr(float(value)))} AS double precision)"
            name = "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
            return f"CAST('{name}' AS double precision)"
        case decimal.Decimal():
            return f"CAST({quote(str(value))} AS numeric)"
        case str():
            return quote(value)
        case dt.datetime():
            kind = "timestamptz" if value.tzinfo else "timestamp"
            return f"CAST({quote(value.isoformat())} AS {kind})"
        case dt.date():
            return f"CAST({quote(value.isoformat())} AS date)"
        case dt.time():
            return f"CAST({quote(value.isoformat())} AS {'timetz' if value.tzinfo else 'time'})"
        case dt.timedelta():
            microseconds = value // dt.timedelta(microseconds=1)
            return f"(({microseconds}) * CAST('1 microsecond' AS interval))"
        case uuid.UUID():
            return f"CAST('{value}' AS uuid)"
        case bytes():
            return f"CAST('\\x{value.hex()}' AS bytea)"
        case dict():
            return f"CAST({quote(json.dumps(value))} AS jsonb)"
        case list() | tuple() | set() | frozenset():
            return f"ARRAY[{', '.join(literal(item) for item in value)}]"
        case _:
            raise TypeError(f"a query cannot take a {type(value).__name__}")


def quote(text: str) -> str:
    if "\0" in text:
        raise ValueError("text for the database cannot contain NUL")
    return "'" + str(text).replace("'", "''") + "'"


class _Compiler(base.PGCompiler):
    def render_literal_value(self, value: Any, type_: Any) -> str:
        return literal(value)


class _Dialect(base.PGDialect):
    statement_compiler = _Compiler
    supports_statement_cache = False


# The named style leaves a percent sign in text alone; the driver's would double it.
_dialect = _Dialect(paramstyle="named")  # type: ignore[no-untyped-call]


def select(statement: sa.Select[Any]) -> str:
    """The select with its values inside."""
    return str(statement.compile(dialect=_dialect, compile_kwargs={"literal_binds": True}))


def identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def copy(
    query: str, *, format: ResultFormat, header: bool, columns: Sequence[tuple[str, str]]
) -> str:
    """COPY of a query's text; `columns` are (name, PostgreSQL type) of its result."""
    match format:
        case ResultFormat.CSV:
            return f"COPY ({query}) TO STDOUT (FORMAT csv, HEADER {str(header).lower()})"
        case ResultFormat.CSV_EXCEL:
            guarded = ", ".join(
                _guard(name) if kind in TEXT_TYPES else f"q.{identifier(name)}"
                for name, kind in columns
            )
            return (
                f"COPY (SELECT {guarded} FROM ({query}) AS q)"
                f" TO STDOUT (FORMAT csv, HEADER {str(header).lower()})"
            )
        case ResultFormat.JSONL:
            # JSON escapes control characters, so with these two as quote and delimiter CSV adds nothing.
            return (
                f"COPY (SELECT row_to_json(q) FROM ({query}) AS q)"
                r" TO STDOUT (FORMAT csv, QUOTE E'\x01', DELIMITER E'\x02')"
            )


def _guard(name: str) -> str:
    """Text that a spreadsheet would take for a formula gets an apostrophe (OWASP: CSV Injection)."""
    column = f"q.{identifier(name)}"
    return (
        f"CASE WHEN {column} ~ E'{_FORMULA.replace(chr(92), chr(92) * 2)}'"
        f" THEN '''' || {column} ELSE {column} END AS {identifier(name)}"
    )

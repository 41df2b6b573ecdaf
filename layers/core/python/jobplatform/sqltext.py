"""A SQLAlchemy select as the text of a COPY, which takes no bind parameters.

Every value becomes a literal in `literal`, the only such place; hostile values are thrown at it in
the tests.
"""

import datetime as dt
import decimal
import enum
import functools
import ipaddress
import json
import math
import re
import uuid
from collections.abc import Callable, Sequence
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
# Their text form is made of digits, signs and fixed words alone: nothing in it is anybody's text.
_NO_TEXT = frozenset(
    {
        "smallint",
        "integer",
        "bigint",
        "numeric",
        "real",
        "double precision",
        "money",
        "boolean",
        "date",
        "time",
        "timestamp",
        "interval",
        "uuid",
        "bytea",
        "oid",
    }
)
_FORMULA = r"^[=+\-@\t\r]"
_INTERVAL = re.compile(
    r"(?:([+-]?\d+) days?)? ?(?:([+-])?(\d+):(\d\d):(\d\d(?:\.\d+)?))?"
).fullmatch
_NUL_IN_JSON = re.compile(r"(?<!\\)(?:\\\\)*\\u0000").search


def may_hold_text(kind: str) -> bool:
    """Whether values of a type, by the name `format_type` gives it, can hold somebody's text.

    Enums, arrays and types of extensions can, as far as is known here.
    """
    return kind.endswith("]") or _base(kind) not in _NO_TEXT


def _base(kind: str) -> str:
    """The type's name without what qualifies it: timestamp(3) with time zone, interval day."""
    name = re.split(r"\(| with", kind, maxsplit=1)[0]
    return "interval" if name.startswith("interval ") else name


def literal(value: Any) -> str:
    """A value as a PostgreSQL literal.

    Relies on `standard_conforming_strings`, which `SESSION` switches on: a quote is the only
    special character. Raises ValueError for what PostgreSQL cannot hold (text with a NUL or half a
    surrogate pair), and TypeError for types it does not know.
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
            return f"CAST({quote(_float(value))} AS double precision)"
        case decimal.Decimal():
            return f"CAST({quote('NaN' if value.is_nan() else str(value))} AS numeric)"
        case str():
            return quote(value)
        case dt.datetime():
            if value.tzinfo is None:
                return f"CAST({quote(value.isoformat())} AS timestamp)"
            return f"CAST({quote(_utc(value).isoformat())} AS timestamptz)"
        case dt.date():
            return f"CAST({quote(value.isoformat())} AS date)"
        case dt.time():
            return f"CAST({quote(value.isoformat())} AS {'timetz' if value.tzinfo else 'time'})"
        case dt.timedelta():
            # Whole numbers: PostgreSQL would multiply an interval in double precision.
            sign, size = ("-" if value < dt.timedelta(0) else ""), abs(value)
            fields = {"days": size.days, "secs": size.seconds, "us": size.microseconds}
            text = " ".join(f"{sign}{number} {unit}" for unit, number in fields.items())
            return f"CAST({quote(text)} AS interval)"
        case uuid.UUID():
            return f"CAST('{value}' AS uuid)"
        case bytes():
            return f"CAST('\\x{value.hex()}' AS bytea)"
        case dict():
            return f"CAST({quote(_json(value))} AS jsonb)"
        case list() | tuple() | set() | frozenset():
            # An empty ARRAY[] would need a type; the text adapts to what it is compared with.
            return f"ARRAY[{', '.join(literal(item) for item in value)}]" if value else "'{}'"
        case _:
            raise TypeError(f"a query cannot take a {type(value).__name__}")


def quote(text: str) -> str:
    if "\0" in text:
        raise ValueError("text for the database cannot contain NUL")
    text.encode()  # a UnicodeEncodeError is a ValueError
    return "'" + str(text).replace("'", "''") + "'"


def _float(value: float) -> str:
    if math.isfinite(value):
        return repr(float(value))
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _utc(value: dt.datetime) -> dt.datetime:
    """PostgreSQL takes no offset of 16 hours or more, nor one with a fraction of a second."""
    try:
        return value.astimezone(dt.UTC)
    except OverflowError as error:
        raise ValueError(f"{value} is too far away in UTC") from error


def _json(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    if _NUL_IN_JSON(text):
        raise ValueError("JSON for the database cannot contain NUL")
    return text


def inet(text: str) -> Any:
    """An address, with its network if it has one: the driver's own way loses the host."""
    return (ipaddress.ip_interface if "/" in text else ipaddress.ip_address)(text)


def interval(text: str) -> dt.timedelta | str:
    """What an interval says, for the driver: its own way loses the sign of hours and minutes.

    One with months has no length and stays text.
    """
    found = _INTERVAL(text)
    if found is None:
        return text
    days, sign, hours, minutes, seconds = found.groups()
    time = dt.timedelta(hours=int(hours or 0), minutes=int(minutes or 0)) + dt.timedelta(
        microseconds=int(decimal.Decimal(seconds or 0) * 1_000_000)
    )
    return dt.timedelta(days=int(days or 0)) + (-time if sign == "-" else time)


def _if_python_can(read: Callable[[str], Any]) -> Callable[[str], Any]:
    """What has no value in Python stays text: a year before 1 or after 9999, infinity, 24:00."""

    def value(text: str) -> Any:
        if text.startswith("24:"):
            return text
        try:
            return read(text)
        except ValueError:
            return text

    return value


_document = functools.partial(json.loads, parse_float=decimal.Decimal)

# How values of these types (by oid) are read, as the driver's own ways lose something.
READERS: dict[int, Callable[[str], Any]] = {
    114: _document,
    869: inet,
    **dict.fromkeys((1083, 1266), _if_python_can(dt.time.fromisoformat)),
    **dict.fromkeys((1114, 1184), _if_python_can(dt.datetime.fromisoformat)),
    1186: interval,
    3802: _document,
    # Points, records, ranges, multiranges, and arrays of these and of inet and interval, stay as
    # they are printed.
    **dict.fromkeys(
        (600, 2249, 2287, 1041, 1187, 3904, 3905, 3906, 3907, 3908, 3909, 3910, 3911, 3912), str
    ),
    **dict.fromkeys((3913, 3926, 3927, 4451, *range(4532, 4537), *range(6150, 6158)), str),
}


# What functions that ask for the time answer, in the time zone of `SESSION`.
_CLOCKS: dict[str, Callable[[dt.datetime], dt.date | dt.time]] = {
    **dict.fromkeys(
        (
            "now",
            "current_timestamp",
            "transaction_timestamp",
            "statement_timestamp",
            "clock_timestamp",
        ),
        lambda now: now,
    ),
    "localtimestamp": lambda now: now.replace(tzinfo=None),
    "current_date": dt.datetime.date,
    "current_time": dt.datetime.timetz,
    "localtime": dt.datetime.time,
}


class _Compiler(base.PGCompiler):
    def render_literal_value(self, value: Any, type_: Any) -> str:
        return _typed(value, type_)

    def visit_function(self, func: Any, *arguments: Any, **named: Any) -> str:
        text = super().visit_function(func, *arguments, **named)
        now: dt.datetime | None = named.get("now")
        clock = _CLOCKS.get(func.name.lower())
        if now is None or clock is None or len(func.clauses):
            return text
        return text if func.packagenames else literal(clock(_utc(now)))


def _typed(value: Any, type_: Any) -> str:
    """A value as its SQLAlchemy type would send it."""
    while isinstance(type_, sa.types.TypeDecorator):
        if type_._has_bind_processor:
            value = type_.process_bind_param(value, _dialect)
        type_ = type_.impl_instance
    if value is None:
        return "NULL"
    if isinstance(type_, sa.types.ARRAY) and isinstance(value, list | tuple):
        name = type_.compile(dialect=_dialect)
        return f"CAST({_array(value, type_.item_type) if value else quote('{}')} AS {name})"
    if isinstance(type_, sa.types.JSON):
        name = type_.compile(dialect=_dialect)
        return f"CAST({quote(_json(None if value is sa.JSON.NULL else value))} AS {name})"
    if isinstance(type_, sa.types.Enum):
        processor = type_.bind_processor(_dialect)
        return literal(processor(value) if processor else value)
    return literal(value)


def _array(values: Sequence[Any], item_type: Any) -> str:
    items = (
        _array(item, item_type) if isinstance(item, list | tuple) else _typed(item, item_type)
        for item in values
    )
    return f"ARRAY[{', '.join(items)}]"


class _Dialect(base.PGDialect):
    statement_compiler = _Compiler
    supports_statement_cache = False


# The named style leaves a percent sign in text alone; the driver's would double it.
_dialect = _Dialect(paramstyle="named")  # type: ignore[no-untyped-call]


def select(statement: sa.Select[Any], *, now: dt.datetime | None = None) -> str:
    """The select with its values inside; with `now`, that is the time for its functions too."""
    options = {"literal_binds": True, "now": now}
    return str(statement.compile(dialect=_dialect, compile_kwargs=options))


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
                _guard(name, kind) if may_hold_text(kind) else f"q.{identifier(name)}"
                for name, kind in columns
            )
            return (
                f"COPY (SELECT {guarded} FROM ({query}) AS q)"
                f" TO STDOUT (FORMAT csv, HEADER {str(header).lower()})"
            )
        case ResultFormat.JSONL:
            line = "row_to_json(q)"
            if any(_may_break_lines(kind) for _, kind in columns):
                # Type json keeps the text it was given; between its tokens a line end is a space.
                line = f"translate(CAST({line} AS text), E'\\n\\r', '  ')"
            # JSON escapes control characters: with these as quote and delimiter CSV adds nothing.
            return (
                f"COPY (SELECT {line} FROM ({query}) AS q)"
                r" TO STDOUT (FORMAT csv, QUOTE E'\x01', DELIMITER E'\x02')"
            )


def _may_break_lines(kind: str) -> bool:
    base = _base(kind.removesuffix("[]"))
    return base not in _NO_TEXT and base not in TEXT_TYPES and base != "jsonb"


def _guard(name: str, kind: str) -> str:
    """Text a spreadsheet would take for a formula gets an apostrophe (OWASP: CSV Injection)."""
    column = f"q.{identifier(name)}"
    pattern = f"E'{_FORMULA.replace(chr(92), chr(92) * 2)}'"
    # Not every collation can be matched.
    formula = f'CAST({column} AS text) COLLATE "C" ~ {pattern}'
    if _base(kind) in {"text", "character varying"}:
        guarded = f"CASE WHEN {formula} THEN '''' || {column} ELSE {column} END"
    else:
        # What COPY would print of any type: a cast would strip the blanks of `character`.
        guarded = (
            f"CASE WHEN {column} IS NOT DISTINCT FROM NULL THEN NULL"
            f" WHEN {formula} THEN concat('''', {column}) ELSE concat({column}) END"
        )
    return f"{guarded} AS {identifier(name)}"

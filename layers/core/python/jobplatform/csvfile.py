"""Rows of Python values as CSV or JSON Lines, byte for byte what PostgreSQL's COPY would write."""

import datetime as dt
import decimal
import enum
import ipaddress
import json
import math
import re
import uuid
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from jobplatform.jobs import ResultFormat
from jobplatform.templating import Column

BOM = b"\xef\xbb\xbf"
CHUNK_BYTES = 256 * 1024
_JSON = frozenset({"json", "jsonb"})
_must_quote = re.compile(r'[",\r\n]|^$').search
_must_quote_in_array = re.compile(r'[{}",\\\s]|^$|^null$', re.IGNORECASE | re.ASCII).search
_is_formula = re.compile(r"[=+\-@\t\r]").match
_json_string = json.JSONEncoder(ensure_ascii=False).encode


def encode(
    rows: Iterable[Sequence[Any]], columns: Sequence[Column], format: ResultFormat
) -> Iterator[tuple[bytes, int]]:
    """Chunks of whole rows with how many they are; the header is not a row and comes first.

    Raises ValueError for a row that has another number of values than there are columns, or a value
    of a type that has no place in a file.
    """
    excel = format is ResultFormat.CSV_EXCEL
    end = "\r\n" if excel else "\n"
    kinds = [column.type for column in columns]
    keys = [_json_string(column.name) + ":" for column in columns]
    buffer: list[str] = []
    size = count = 0
    if format is not ResultFormat.JSONL:
        buffer.append(",".join(_quoted(column.name) for column in columns) + end)
    for row in rows:
        if len(row) != len(kinds):
            raise ValueError(f"a row has {len(row)} values for {len(kinds)} columns")
        if format is ResultFormat.JSONL:
            values = [
                key + _json(value, kind) for key, kind, value in zip(keys, kinds, row, strict=True)
            ]
            line = "{" + ",".join(values) + "}"
        else:
            line = ",".join(
                [_field(value, kind, excel) for kind, value in zip(kinds, row, strict=True)]
            )
            if line == r"\.":
                # Alone on its line it was the end of the data for servers before PostgreSQL 18.
                line = r'"\."'
        buffer.append(line + end)
        size += len(line)
        count += 1
        if size >= CHUNK_BYTES:
            yield "".join(buffer).encode(), count
            buffer.clear()
            size = count = 0
    if buffer:
        yield "".join(buffer).encode(), count


def _field(value: Any, kind: str, guard: bool) -> str:
    """NULL is nothing, an empty text is `""`."""
    if value is None:
        return ""
    text = text_of(value, kind)
    if guard and (isinstance(value, str | enum.Enum) or kind in _JSON) and _is_formula(text):
        text = "'" + text
    return _quoted(text)


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"' if _must_quote(text) else text


def text_of(value: Any, kind: str = "") -> str:
    """A value as PostgreSQL prints it, with the session's settings of `sqltext.SESSION`.

    `kind` is the PostgreSQL name of its type, for values that more than one type can hold.
    """
    if kind in _JSON:
        return _document(value, sort=kind == "jsonb")
    match value:
        case str():
            return value
        case bool():
            return "t" if value else "f"
        case enum.Enum():
            return text_of(value.value, kind)
        case float():
            return _float(value, kind)
        case decimal.Decimal():
            return _decimal(value)
        case int():
            return str(int(value))
        case dt.datetime():
            return _timestamp(value, " ")
        case dt.time():
            return _time(value)
        case dt.timedelta():
            return _interval(value)
        case dt.date() | uuid.UUID():
            return str(value)
        case ipaddress.IPv4Address() | ipaddress.IPv6Address():
            return str(value)
        case ipaddress.IPv4Network() | ipaddress.IPv6Network():
            return str(value)
        case bytes():
            return "\\x" + value.hex()
        case list() | tuple() if kind.endswith("[]"):
            return _array(value, kind.removesuffix("[]"))
        case dict() | list() | tuple():
            return _document(value, sort=False)
        case _:
            raise ValueError(f"a row cannot hold a {type(value).__name__}")


def _float(value: float, kind: str = "") -> str:
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    # Python and PostgreSQL differ on when the exponent is written.
    digits = 6 if kind == "real" else 15
    text = _shortest(value)
    if "e" not in text and abs(value) < 10**digits:
        return text.removesuffix(".0")
    sign, numerals, exponent = decimal.Decimal(text).normalize().as_tuple()
    assert isinstance(exponent, int)
    head, *tail = map(str, numerals)
    fraction = "." + "".join(tail) if tail else ""
    return f"{'-' * sign}{head}{fraction}e{exponent + len(numerals) - 1:+03d}"


def _shortest(value: float) -> str:
    """The fewest digits that read back as the value.

    Python takes a number right between two floats for the even one, PostgreSQL would rather write
    a digit more. Only above 2**53 are there such numbers of so few digits.
    """
    text = repr(value)
    if abs(value) < 2**53 or not _is_between(text, value):
        return text
    for digits in (15, 16, 17):
        text = f"{value:.{digits}g}"
        if float(text) == value and not _is_between(text, value):
            break
    return text


def _is_between(text: str, value: float) -> bool:
    """Whether a number lies right between a whole float and the next one on its side."""
    off = abs(int(decimal.Decimal(text))) - abs(int(value))
    # Below a power of two the next one is only half as far away.
    next_one = math.ulp(value) if off > 0 else math.ulp(math.nextafter(value, 0.0))
    return 2 * abs(off) == int(next_one)


def _decimal(value: decimal.Decimal) -> str:
    if not value.is_finite():
        return "NaN" if value.is_nan() else "Infinity" if value > 0 else "-Infinity"
    if value.is_zero():
        exponent = value.as_tuple().exponent
        assert isinstance(exponent, int)
        return "0." + "0" * -exponent if exponent < 0 else "0"
    return format(value, "f")


def _timestamp(value: dt.datetime, separator: str) -> str:
    aware = value.tzinfo is not None
    if aware:
        try:
            value = value.astimezone(dt.UTC)
        except OverflowError as error:
            raise ValueError(f"{value} is too far away in UTC") from error
    text = value.replace(tzinfo=None).isoformat(separator)
    zone = "+00:00" if separator == "T" else "+00"
    return _short_fraction(text) + (zone if aware else "")


def _time(value: dt.time) -> str:
    text = _short_fraction(value.replace(tzinfo=None).isoformat())
    offset = value.utcoffset()
    if value.tzinfo is None or offset is None:
        return text
    zone = value.isoformat()[len(value.replace(tzinfo=None).isoformat()) :]
    return text + zone.removesuffix(":00")


def _short_fraction(text: str) -> str:
    return text.rstrip("0") if "." in text else text


def _interval(value: dt.timedelta) -> str:
    """As days and a time, both with the sign of the whole: what an interval of days would print."""
    sign = "-" if value < dt.timedelta(0) else ""
    value = abs(value)
    hours, seconds = divmod(value.seconds, 3600)
    days = f"{sign}{value.days} day{'' if value.days == 1 and not sign else 's'}"
    fraction = f".{value.microseconds:06d}".rstrip("0") if value.microseconds else ""
    time = f"{sign}{hours:02d}:{seconds // 60:02d}:{seconds % 60:02d}{fraction}"
    if not value.days:
        return time
    return days if not value.seconds and not value.microseconds else f"{days} {time}"


def _array(values: Sequence[Any], kind: str) -> str:
    return "{" + ",".join(_element(value, kind) for value in values) + "}"


def _element(value: Any, kind: str) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, list | tuple) and kind not in _JSON:
        return _array(value, kind)
    text = text_of(value, kind)
    if not _must_quote_in_array(text):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _document(value: Any, *, sort: bool) -> str:
    """JSON as type jsonb prints it: keys by length, numbers without an exponent."""
    match value:
        case dict():
            if not all(isinstance(key, str) for key in value):
                raise ValueError("JSON cannot hold keys other than text")
            keys = sorted(value, key=lambda key: (len(key.encode()), key)) if sort else list(value)
            members = (f"{_json_string(key)}: {_document(value[key], sort=sort)}" for key in keys)
            return "{" + ", ".join(members) + "}"
        case list() | tuple():
            return "[" + ", ".join(_document(item, sort=sort) for item in value) + "]"
        case float() if math.isfinite(value):
            return _decimal(decimal.Decimal(repr(value)))
        case decimal.Decimal() if value.is_finite():
            return _decimal(value)
        case None | bool() | int() | str():
            return _json_string(value)
        case _:
            raise ValueError(f"JSON cannot hold {value!r:.40}")


def _json(value: Any, kind: str) -> str:
    """A value as `row_to_json` writes it."""
    if kind in _JSON and value is not None:
        return text_of(value, kind)
    match value:
        case None | bool() | int() | str():
            return _json_string(value)
        case enum.Enum():
            return _json(value.value, kind)
        case float() if math.isfinite(value):
            return _float(value, kind)
        case decimal.Decimal() if value.is_finite():
            return _decimal(value)
        case dt.datetime():
            return _json_string(_timestamp(value, "T"))
        case dict():
            return _document(value, sort=False)
        case list() | tuple():
            kind = kind.removesuffix("[]")
            return "[" + ",".join(_json(item, kind) for item in value) + "]"
        case _:
            return _json_string(text_of(value, kind))

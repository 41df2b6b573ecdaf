"""Rows of Python values as CSV or JSON Lines, byte for byte what PostgreSQL's COPY would write."""

import datetime as dt
import decimal
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
_must_quote = re.compile(r'[",\r\n]|^$|^\\\.$').search
_is_formula = re.compile(r"[=+\-@\t\r]").match


def encode(
    rows: Iterable[Sequence[Any]], columns: Sequence[Column], format: ResultFormat
) -> Iterator[tuple[bytes, int]]:
    """Chunks of whole rows with how many they are; the header is not a row and comes with the first chunk.

    Raises ValueError for a row that has another number of values than there are columns.
    """
    excel = format is ResultFormat.CSV_EXCEL
    end = "\r\n" if excel else "\n"
    names = [column.name for column in columns]
    buffer: list[str] = []
    size = count = 0
    if format is not ResultFormat.JSONL:
        buffer.append(",".join(map(_quoted, names)) + end)
    for row in rows:
        if len(row) != len(names):
            raise ValueError(f"a row has {len(row)} values for {len(names)} columns")
        if format is ResultFormat.JSONL:
            line = json.dumps(
                dict(zip(names, map(_json_value, row), strict=True)),
                ensure_ascii=False,
                separators=(",", ":"),
            )
        else:
            line = ",".join([_field(value, excel) for value in row])
        buffer.append(line + end)
        size += len(line)
        count += 1
        if size >= CHUNK_BYTES:
            yield "".join(buffer).encode(), count
            buffer.clear()
            size = count = 0
    if buffer:
        yield "".join(buffer).encode(), count


def _field(value: Any, guard: bool) -> str:
    """NULL is nothing, an empty text is `""`."""
    if value is None:
        return ""
    if isinstance(value, str):
        return _quoted("'" + value if guard and _is_formula(value) else value)
    return _quoted(text_of(value))


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"' if _must_quote(text) else text


def text_of(value: Any) -> str:
    """A value as PostgreSQL prints it, with the session's settings of `sqltext.SESSION`."""
    match value:
        case bool():
            return "t" if value else "f"
        case float():
            if not math.isfinite(value):
                return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
            text = repr(value)
            return text.removesuffix(".0") if "e" not in text else text.replace(".0e", "e")
        case dt.datetime():
            text = (value.astimezone(dt.UTC) if value.tzinfo else value).isoformat(" ")
            if "." in text:
                head, _, rest = text.partition(".")
                digits, zone = rest[:6].rstrip("0"), rest[6:]
                text = f"{head}.{digits}{zone}" if digits else head + zone
            return text.replace("+00:00", "+00")
        case dt.date() | dt.time() | int() | decimal.Decimal() | uuid.UUID() | str():
            return str(value)
        case bytes():
            return "\\x" + value.hex()
        case dict() | list():
            return json.dumps(value, ensure_ascii=False)
        case _:
            raise ValueError(f"a row cannot hold a {type(value).__name__}")


def _json_value(value: Any) -> Any:
    match value:
        case None | bool() | int() | str() | dict() | list():
            return value
        case float() if math.isfinite(value):
            return value
        case decimal.Decimal() if value.is_finite():
            return int(value) if value == value.to_integral_value() else float(value)
        case dt.datetime():
            return value.isoformat()
        case _:
            return text_of(value)

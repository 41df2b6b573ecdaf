"""Python rows written as PostgreSQL's COPY would write them, compared with the server's own."""

import datetime as dt
import decimal
import enum
import io
import ipaddress
import json
from typing import Any

import pg8000.native
import pytest
import sqlalchemy as sa
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jobplatform import copy_stream, csvfile, export, sqltext
from jobplatform import settings as platform_settings
from jobplatform.jobs import ResultFormat
from jobplatform.templating import Column

Session = pg8000.native.Connection
many = settings(deadline=None, max_examples=150)

text = st.one_of(
    st.text(st.sampled_from("a,\"'\n\r\\.=+-@\t {}é\U0001f600")),
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])),
)
minutes = st.integers(-15 * 60, 15 * 60).map(lambda found: dt.timezone(dt.timedelta(minutes=found)))
timestamps = st.datetimes(min_value=dt.datetime(2, 1, 1), max_value=dt.datetime(9998, 12, 31))
document = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats(allow_nan=False, allow_infinity=False)
    | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=8,
)

# Values of Python for each type of PostgreSQL.
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "text": text,
    "boolean": st.booleans(),
    "bigint": st.integers(-(2**63), 2**63 - 1),
    "double precision": st.floats(),
    "real": st.floats(width=32)
    .map(lambda found: float(f"{found:.6g}"))
    .filter(lambda found: found == 0 or abs(found) > 1e-37),
    "numeric": st.decimals(min_value=-(10**30), max_value=10**30, allow_nan=True),
    "date": st.dates(),
    "timestamp": st.datetimes(),
    "timestamptz": st.builds(lambda at, zone: at.replace(tzinfo=zone), timestamps, minutes),
    "time": st.times(),
    "timetz": st.builds(lambda at, zone: at.replace(tzinfo=zone), st.times(), minutes),
    "interval": st.timedeltas(dt.timedelta(days=-(10**6)), dt.timedelta(days=10**6)),
    "uuid": st.uuids(),
    "bytea": st.binary(max_size=30),
    "inet": st.ip_addresses(),
    "jsonb": document.filter(lambda found: found is not None),
}
for _kind in ("text", "bigint", "double precision", "boolean", "timestamptz", "numeric", "bytea"):
    VALUES[_kind + "[]"] = st.lists(VALUES[_kind] | st.none(), max_size=4)

# Where PostgreSQL reads its own text form: COPY of what it read is the truth.
SPECIAL: dict[str, list[Any]] = {
    "double precision": [1e15, 123456789012345680.0, 1e16, 1e-4, 1e-5, -0.0, 5e-324, 0.1 + 0.2],
    "real": [1e6, 999999.0, 1e-5, 1.5e20],
    "numeric": [decimal.Decimal(each) for each in ("1E+2", "1E-7", "-0", "0E+3", "-0.00", "1.10")],
    "time": [dt.time(12, 0, 0, 500000), dt.time(0)],
    "interval": [dt.timedelta(hours=-2), dt.timedelta(days=1), dt.timedelta(days=-1, seconds=1)],
    "timestamp": [dt.datetime(1, 1, 1), dt.datetime(2024, 1, 1, 0, 0, 0, 120000)],
    "text": ["", "\\.", "NULL", '"', "\\N", "=1"],
    "text[]": [["", None, "NULL", "null", "a b", "{", "\\", '"', "\v", "\u00a0"], [["a"], ["b"]]],
    "integer[]": [[], [1, None], [[1, 2], [3, 4]]],
    "jsonb": [{"b": 1, "aa": 2, "é": 3, "a": {"y": 1.0, "x": 1e16}}, [], {}, [1e-7, "\u2028"], -1,
              "=1", True, 1e16],
    "smallint": [-5, 0],
    "cidr": [ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("2001:db8::/32")],
}  # fmt: skip


@st.composite
def tables(draw: st.DrawFn) -> tuple[list[str], list[list[Any]]]:
    kinds = draw(st.lists(st.sampled_from(sorted(VALUES)), min_size=1, max_size=4))
    row = st.tuples(*(VALUES[kind] | st.none() for kind in kinds)).map(list)
    return kinds, draw(st.lists(row, min_size=1, max_size=3))


def ours(kinds: list[str], rows: list[list[Any]], format: ResultFormat) -> str:
    columns = [Column(f"c{number}", kind) for number, kind in enumerate(kinds)]
    return b"".join(chunk for chunk, _ in csvfile.encode(rows, columns, format)).decode()


def theirs(session: Session, kinds: list[str], rows: list[list[Any]], format: ResultFormat) -> str:
    """What the export of a select of the same values would write."""
    names = [f"c{number}" for number in range(len(kinds))]
    selects = [
        "SELECT "
        + ", ".join(
            f"CAST({literal(value, kind)} AS {kind}) AS {name}"
            for value, kind, name in zip(row, kinds, names, strict=True)
        )
        for row in rows
    ]
    written = io.BytesIO()
    copy = sqltext.copy(
        " UNION ALL ".join(selects),
        format=format,
        header=True,
        columns=list(zip(names, kinds, strict=True)),
    )
    crlf = format is ResultFormat.CSV_EXCEL
    copy_stream.copy_out(session, copy, lambda block, *_: written.write(block), crlf=crlf)
    return written.getvalue().decode()


def literal(value: Any, kind: str) -> str:
    if value is None:
        return "NULL"
    if kind == "jsonb":
        return sqltext.quote(json.dumps(value))
    if kind in {"inet", "cidr"}:
        return sqltext.quote(str(value))
    if kind == "real":
        return sqltext.quote(repr(value))
    return sqltext.literal(value)


@many
@given(tables())
def test_csv_equals_the_servers_byte_for_byte(
    session: Session, table: tuple[list[str], list[list[Any]]]
) -> None:
    assert ours(*table, ResultFormat.CSV) == theirs(session, *table, ResultFormat.CSV)


@pytest.mark.parametrize("kind", sorted(SPECIAL))
@pytest.mark.parametrize("format", [ResultFormat.CSV, ResultFormat.CSV_EXCEL])
def test_what_is_easily_got_wrong(session: Session, kind: str, format: ResultFormat) -> None:
    for value in SPECIAL[kind]:
        for kinds, row in (([kind], [value]), ([kind, "text"], [value, None])):
            assert ours(kinds, [row], format) == theirs(session, kinds, [row], format)


@many
@given(st.lists(st.tuples(text, st.integers(-5, 5), text), min_size=1, max_size=3))
def test_the_excel_profile_equals_the_servers(
    session: Session, rows: list[tuple[str, int, str]]
) -> None:
    table = (["text", "integer", "text"], [list(row) for row in rows])
    # The server's rows get their line ends from the export, which must not touch those in quotes.
    assert ours(*table, ResultFormat.CSV_EXCEL) == theirs(session, *table, ResultFormat.CSV_EXCEL)


@many
@given(tables())
@example((["numeric"], [[decimal.Decimal("0.1234567890123456789012")]]))
@example((["text[]"], [[["a", None]]]))
def test_json_lines_mean_what_the_servers_mean(
    session: Session, table: tuple[list[str], list[list[Any]]]
) -> None:
    mine, server = ours(*table, ResultFormat.JSONL), theirs(session, *table, ResultFormat.JSONL)
    assert mine.count("\n") == server.count("\n") == len(table[1])
    assert [read_line(line) for line in mine.split("\n")] == [
        read_line(line) for line in server.split("\n")
    ]


def read_line(line: str) -> Any:
    if not line:
        return None
    return json.loads(line, parse_float=decimal.Decimal, parse_int=decimal.Decimal)


# As an adopter's rows come: read from the database by a row generator.
READ = [
    "INTERVAL '-2:30'", "INTERVAL '-00:00:01.5'", "INTERVAL '-1 day -01:00'",
    "INTERVAL '1 year -2 mons 3 days'", "INTERVAL '400 days'", "DATE 'infinity'",
    "DATE '0044-03-15 BC'", "TIMESTAMP '-infinity'", "TIMESTAMPTZ '2024-01-01 12:00:00.120+05:30'",
    "TIMESTAMPTZ '0044-03-15 BC'", "TIME '12:34:56.500'", "TIMETZ '12:34:56+05:30'",
    "CAST('NaN' AS numeric)", "CAST('-Infinity' AS double precision)", "CAST(1e15 AS real)",
    "CAST(0.1 AS real)", "12345678901234567890.1234567890", "CAST(1e100 AS double precision)",
    "TRUE", "'it''s'", "CAST('' AS text)", "CAST('a ' AS character(3))", "'\\x00ff'::bytea",
    "'{\"b\": 1, \"aa\": [null]}'::jsonb", "'10.0.0.1/8'::inet", "'10.0.0.1'::inet",
    "'10.0.0.0/8'::cidr", "'6a2f41a3-c54c-fce8-32d2-0324e1c32e22'::uuid", "'$1.50'::money",
    "ARRAY[1, NULL]", "ARRAY['a b', NULL, 'NULL', '']", "'{}'::text[]", "ARRAY[[1], [2]]",
    "ARRAY[INTERVAL '-2:30']", "ARRAY['10.0.0.1/8'::inet]", "'{[1,2), [5,7)}'::int4multirange",
    "ARRAY[1.50]", "int4range(1, 5)", "int4range(NULL, 5)", "'empty'::numrange", "NULL",
    "tstzrange('2024-01-01', NULL)", "point(1, 2)", "ARRAY[TIMESTAMP '2024-01-01 00:00:00.5']",
    "TIMESTAMP '0044-03-15 BC'", "TIMESTAMP '12013-01-01 12:00'", "TIME '24:00'",
    "TIMETZ '24:00+01'", "ROW(1, 'a b', NULL)", "ARRAY[ROW(1, NULL)]",
    "'[1.10, 12345678901234567.89, 1e400]'::jsonb",
    "B'101'", "to_tsvector('simple', 'a b')", "'08:00:2b:01:02:03'::macaddr",
]  # fmt: skip


@pytest.mark.parametrize("expression", READ)
def test_what_a_row_generator_reads_is_written_as_copy_would(
    plain_data: platform_settings.DataDatabaseSettings, expression: str
) -> None:
    with export.Session(plain_data, statement_timeout=dt.timedelta(minutes=1)) as session:
        query = f"SELECT {expression} AS c0, 1 AS c1"
        columns = session.describe(query)
        rows = list(session.read(sa.select(sa.text(query.removeprefix("SELECT ")))))
        mine = b"".join(chunk for chunk, _ in csvfile.encode(rows, columns, ResultFormat.CSV))
        written = io.BytesIO()
        copy = sqltext.copy(
            query,
            format=ResultFormat.CSV,
            header=True,
            columns=[(column.name, column.type) for column in columns],
        )
        copy_stream.copy_out(session.connection, copy, lambda block, *_: written.write(block))

    assert mine.decode() == written.getvalue().decode()


class Colour(enum.Enum):
    RED = "red"
    FORMULA = "=1+1"


def test_enums_are_their_values() -> None:
    assert ours(["text"], [[Colour.RED]], ResultFormat.CSV) == "c0\nred\n"
    assert ours(["text"], [[Colour.RED]], ResultFormat.JSONL) == '{"c0":"red"}\n'
    assert ours(["text"], [[Colour.FORMULA]], ResultFormat.CSV_EXCEL) == "c0\r\n'=1+1\r\n"


@pytest.mark.parametrize("format", list(ResultFormat))
@pytest.mark.parametrize(
    "row",
    [[1], [1, 2, 3], [object(), 1], [1, {1: 2}], [1, {"a": float("nan")}], ["\ud800", 1]],
    ids=["too few", "too many", "no type", "no JSON key", "no JSON number", "no text"],
)
def test_rows_that_cannot_be_written_are_refused(row: list[Any], format: ResultFormat) -> None:
    with pytest.raises(ValueError, match=r"a row |JSON cannot|surrogates"):
        ours(["text", "text"], [row], format)


def test_chunks_hold_whole_rows_and_say_how_many() -> None:
    columns = [Column("a", "integer"), Column("b", "text")]
    rows = ([number, "x" * 100] for number in range(10_000))

    chunks = list(csvfile.encode(rows, columns, ResultFormat.CSV))

    assert len(chunks) > 3
    assert sum(count for _, count in chunks) == 10_000
    assert all(chunk.endswith(b"\n") for chunk, _ in chunks)
    assert all(len(chunk) < csvfile.CHUNK_BYTES + 200 + count for chunk, count in chunks)
    assert chunks[0][0].count(b"\n") == chunks[0][1] + 1


@pytest.mark.parametrize("format", list(ResultFormat))
def test_no_rows_are_a_header_alone(format: ResultFormat) -> None:
    expected = {"csv": "c0\n", "csv-excel": "c0\r\n", "jsonl": ""}
    assert ours(["text"], [], format) == expected[format]

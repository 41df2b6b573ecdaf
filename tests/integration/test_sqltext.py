"""Values as literals, against a real PostgreSQL: what goes in comes out."""

import csv
import datetime as dt
import decimal
import enum
import io
import json
import math
import uuid
from typing import Any

import pg8000.native
import pytest
import sqlalchemy as sa
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sqlalchemy.dialects import postgresql as pg

from jobplatform import copy_stream, sqltext
from jobplatform.jobs import ResultFormat

Session = pg8000.native.Connection

# Pieces that mean something to SQL, to SQLAlchemy's compiler or to the driver.
_PIECES = [
    "'", "''", '"', "\\", "\\'", "E'", "$$", "$x$", "$1", "--", "/*", "*/", ";", "%", "%s", "%%",
    ":", ":name", "::text", "?", "\n", "\r", "\t", "\b", "{", "}", "(", ")", ",", "NULL", "\\N",
    "\\.", "\\x41", "U&'", "__[POSTCOMPILE_param_1]", "[POSTCOMPILE_x]", "%(param_1)s", "\u2028",
    "é", "日本", "\U0001f600", "\u202e", "'); DROP TABLE canary; --", "' OR 1=1 --", " ", "a",
]  # fmt: skip
_ANY_TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
hostile = st.one_of(st.lists(st.sampled_from(_PIECES), max_size=8).map("".join), _ANY_TEXT)
many = settings(deadline=None, max_examples=200)
some = settings(deadline=None, max_examples=60)


@pytest.fixture(scope="module")
def canary(session: Session) -> Session:
    session.run("CREATE TEMP TABLE canary (x int)")
    session.run("INSERT INTO canary VALUES (1)")
    return session


def evaluated(session: Session, value: Any) -> Any:
    [[found]] = session.run(f"SELECT {sqltext.literal(value)}")
    return found


def is_same(session: Session, value: Any, written: str) -> bool:
    """Whether the server itself takes the literal for the same as a value written by hand."""
    [[found]] = session.run(f"SELECT {sqltext.literal(value)} IS NOT DISTINCT FROM {written}")
    return bool(found)


@many
@given(hostile)
def test_text_comes_out_as_it_went_in(canary: Session, text: str) -> None:
    assert evaluated(canary, text) == text
    assert canary.run("SELECT x FROM canary") == [[1]]


@many
@given(hostile, hostile)
def test_text_in_a_statement_reaches_the_copy_unchanged(
    canary: Session, text: str, other: str
) -> None:
    t = sa.values(sa.column("t", sa.Text), name="v").data([(text,)])
    statement = sa.select(t.c.t, sa.literal(other).label("o")).where(
        t.c.t == text, t.c.t.in_([text, other]), sa.literal(other) != sa.literal(other + "x")
    )
    written = io.BytesIO()
    query = sqltext.copy(
        sqltext.select(statement), format=ResultFormat.CSV, header=False, columns=[]
    )

    copy_stream.copy_out(canary, query, lambda block, *_: written.write(block))

    reader = csv.reader(io.StringIO(written.getvalue().decode(), newline=""))
    assert list(reader) == [[text, other]]
    assert canary.run("SELECT x FROM canary") == [[1]]


@given(hostile, st.sampled_from(["\0", "\ud800", "\udfff"]), hostile)
@settings(deadline=None)
def test_text_that_postgres_cannot_hold_is_refused(before: str, bad: str, after: str) -> None:
    with pytest.raises(ValueError, match=r"NUL|surrogates"):
        sqltext.literal(before + bad + after)


@pytest.mark.parametrize("value", [{"a": "\0"}, {"\0": 1}, {"a": ["\\\0"]}, {"a": float("nan")}])
def test_json_that_postgres_cannot_hold_is_refused(value: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"NUL|JSON compliant"):
        sqltext.literal(value)


@some
@given(st.integers(min_value=-(10**60), max_value=10**60))
@example(2**31)
@example(-(2**63))
def test_integers(session: Session, value: int) -> None:
    assert int(evaluated(session, value)) == value
    assert is_same(session, value, f"CAST('{value}' AS numeric)")
    [[negated]] = session.run(f"SELECT -{sqltext.literal(value)}")
    assert int(negated) == -value


@some
@given(st.floats())
@example(1e308)
@example(5e-324)
@example(-0.0)
@example(math.nan)
@example(math.inf)
@example(-math.inf)
def test_floats(session: Session, value: float) -> None:
    found = evaluated(session, value)
    assert (math.isnan(found) and math.isnan(value)) or found == value
    assert math.copysign(1, found) == math.copysign(1, value) or math.isnan(value)


@some
@given(st.decimals(min_value=-(10**40), max_value=10**40, places=None, allow_nan=True))
@example(decimal.Decimal("1E+2"))
@example(decimal.Decimal("1E-30"))
@example(decimal.Decimal("Infinity"))
@example(decimal.Decimal("-NaN"))
@example(decimal.Decimal("sNaN"))
def test_decimals(session: Session, value: decimal.Decimal) -> None:
    found = evaluated(session, value)
    assert found.is_nan() if value.is_nan() else found == value


@some
@given(st.dates())
def test_dates(session: Session, value: dt.date) -> None:
    assert evaluated(session, value) == value


@some
@given(st.datetimes())
def test_timestamps(session: Session, value: dt.datetime) -> None:
    assert evaluated(session, value) == value


@some
@given(
    st.datetimes(min_value=dt.datetime(2, 1, 1), max_value=dt.datetime(9998, 1, 1)),
    st.timedeltas(min_value=dt.timedelta(hours=-23), max_value=dt.timedelta(hours=23)),
)
@example(dt.datetime(2024, 2, 29, 12), dt.timedelta(hours=20))
@example(dt.datetime(2024, 2, 29, 12), dt.timedelta(seconds=1, microseconds=5))
def test_timestamps_with_any_offset(
    session: Session, value: dt.datetime, offset: dt.timedelta
) -> None:
    aware = value.replace(tzinfo=dt.timezone(offset))
    assert evaluated(session, aware) == aware


def test_a_timestamp_outside_of_the_calendar_in_utc_is_refused() -> None:
    with pytest.raises(ValueError, match="too far away"):
        sqltext.literal(dt.datetime.max.replace(tzinfo=dt.timezone(dt.timedelta(hours=-5))))


@some
@given(st.times())
def test_times(session: Session, value: dt.time) -> None:
    assert evaluated(session, value) == value


@some
@given(st.timedeltas(min_value=dt.timedelta(days=-(10**6)), max_value=dt.timedelta(days=10**6)))
@example(dt.timedelta(days=400_000, microseconds=1))
@example(dt.timedelta(microseconds=-1))
def test_intervals_to_the_microsecond(session: Session, value: dt.timedelta) -> None:
    [[text]] = session.run(f"SELECT CAST({sqltext.literal(value)} AS text)")
    assert sqltext.interval(text) == value


def test_an_interval_of_months_stays_text(session: Session) -> None:
    [[text]] = session.run("SELECT CAST(INTERVAL '-1 year 2 days -03:04:05' AS text)")
    assert sqltext.interval(text) == "-1 years +2 days -03:04:05"


@some
@given(st.uuids(), st.binary(max_size=50), st.booleans())
def test_uuids_bytes_and_booleans(
    session: Session, key: uuid.UUID, body: bytes, flag: bool
) -> None:
    assert evaluated(session, key) == key
    assert evaluated(session, body) == body
    assert evaluated(session, flag) is flag


def test_null(session: Session) -> None:
    assert evaluated(session, None) is None


class Colour(enum.Enum):
    RED = "it's red"


class Level(enum.IntEnum):
    LOW = 1


class Name(enum.StrEnum):
    QUOTED = "a'b\\"


@pytest.mark.parametrize("value", [Colour.RED, Level.LOW, Name.QUOTED])
def test_enums_are_their_values(session: Session, value: enum.Enum) -> None:
    assert evaluated(session, value) == value.value


_json = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | hostile,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(hostile, inner, max_size=3),
    max_leaves=8,
)


@some
@given(st.dictionaries(hostile, _json, max_size=4))
@example({"\\": "\\u0000", "'": ["\\\\u0000"]})
def test_json(session: Session, value: dict[str, Any]) -> None:
    assert evaluated(session, value) == value


@some
@given(st.lists(hostile | st.none(), min_size=1, max_size=5))
def test_arrays(session: Session, value: list[str | None]) -> None:
    assert is_same(session, value, f"CAST({sqltext.quote(_array_text(value))} AS text[])")


def test_nested_arrays(session: Session) -> None:
    assert evaluated(session, [[1, 2], [3, 4]]) == [[1, 2], [3, 4]]
    assert evaluated(session, (dt.date(2024, 1, 1), None)) == [dt.date(2024, 1, 1), None]


@pytest.mark.parametrize("kind", ["integer", "text", "uuid"])
def test_an_empty_array_fits_whatever_it_is_compared_with(session: Session, kind: str) -> None:
    [[found]] = session.run(f"SELECT CAST(NULL AS {kind}) = ANY({sqltext.literal([])})")
    assert found is not True


@pytest.mark.parametrize("value", [object(), sa.text("1"), print, range(3)])
def test_other_types_are_refused(value: Any) -> None:
    with pytest.raises(TypeError, match="a query cannot take"):
        sqltext.literal(value)


class Shout(sa.types.TypeDecorator[str]):
    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Any) -> str | None:
        return None if value is None else value.upper()


@pytest.mark.parametrize(
    ("type_", "value", "expected"),
    [
        (sa.Enum(Colour), Colour.RED, "RED"),
        (Shout(), "it's", "IT'S"),
        (sa.Interval(), dt.timedelta(2, 0, 1), dt.timedelta(2, 0, 1)),
        (pg.JSONB(), [1, {"a": "b'"}], [1, {"a": "b'"}]),
        (pg.JSONB(), "text", "text"),
        (pg.JSON(), {"a": [None]}, {"a": [None]}),
        (pg.ARRAY(sa.Integer), [], []),
        (pg.ARRAY(sa.Text), ["a'", None], ["a'", None]),
        (pg.ARRAY(Shout()), ["a"], ["A"]),
        (sa.ARRAY(sa.Integer, dimensions=2), [[1], [2]], [[1], [2]]),
    ],
)
def test_values_are_sent_as_their_sqlalchemy_type_would(
    session: Session, type_: Any, value: Any, expected: Any
) -> None:
    query = sqltext.select(sa.select(sa.literal(value, type_)))
    [[found]] = session.run(query)
    assert found == expected


def test_functions_that_say_the_time_say_that_of_the_export(session: Session) -> None:
    now = dt.datetime(2024, 3, 1, 1, 30, 0, 5, tzinfo=dt.timezone(dt.timedelta(hours=2)))
    utc = dt.datetime(2024, 2, 29, 23, 30, 0, 5, tzinfo=dt.UTC)
    expected = {
        sa.func.now(): utc,
        sa.func.current_timestamp(): utc,
        sa.func.transaction_timestamp(): utc,
        sa.func.statement_timestamp(): utc,
        sa.func.clock_timestamp(): utc,
        sa.func.NOW() - dt.timedelta(days=1): utc - dt.timedelta(days=1),
        sa.func.localtimestamp(): utc.replace(tzinfo=None),
        sa.func.current_date(): utc.date(),
        sa.func.localtime(): utc.time(),
        sa.cast(sa.func.current_time(), sa.Text): "23:30:00.000005+00",
    }

    [found] = session.run(sqltext.select(sa.select(*expected), now=now))

    assert found == list(expected.values())


def test_other_functions_of_such_names_are_left_alone() -> None:
    statement = sa.select(sa.func.shop.now(), sa.func.current_timestamp(0), sa.func.now(1))

    assert sqltext.select(statement, now=dt.datetime.now(dt.UTC)) == sqltext.select(statement)


def test_percent_signs_and_modulo(session: Session) -> None:
    statement = sa.select(
        sa.literal("50%") + "%%s", sa.literal(7) % 4, sa.literal("a%b").like("a\\%b")
    )
    assert session.run(sqltext.select(statement)) == [["50%%%s", 3, True]]


@pytest.mark.parametrize(
    ("kind", "guarded"),
    [
        ("text", True), ("character varying(10)", True), ("character(5)", True), ("name", True),
        ("text[]", True), ("integer[]", True), ("mood", True), ("jsonb", True), ("citext", True),
        ("integer", False), ("numeric(10,2)", False), ("double precision", False),
        ("timestamp(3) with time zone", False), ("interval day to second", False),
        ("interval(3)", False), ("boolean", False), ("uuid", False), ("bytea", False),
    ],
)  # fmt: skip
def test_which_types_may_hold_text(kind: str, guarded: bool) -> None:
    assert sqltext.may_hold_text(kind) is guarded


def copied(session: Session, query: str, format: ResultFormat) -> str:
    """The rows of a query as the export writes them, without header."""
    session.run(f"SELECT * FROM ({query}) AS q LIMIT 0")
    kinds = session.run(
        "SELECT format_type(o, m) FROM unnest(CAST(:oids AS oid[]), CAST(:mods AS int4[]))"
        " WITH ORDINALITY AS t(o, m, n) ORDER BY n",
        oids=[column["type_oid"] for column in session.columns or []],
        mods=[column["type_modifier"] for column in session.columns or []],
    )
    session.run(f"SELECT * FROM ({query}) AS q LIMIT 0")
    names = [column["name"] for column in session.columns or []]
    columns = list(zip(names, (kind for (kind,) in kinds), strict=True))
    text = sqltext.copy(query, format=format, header=False, columns=columns)
    written = io.BytesIO()
    copy_stream.copy_out(session, text, lambda block, *_: written.write(block))
    return written.getvalue().decode()


FORMULAS = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1"]
HARMLESS = ["a=1", " =1", "1-1", "", "'=1", "\n=1"]


@pytest.mark.parametrize("text", FORMULAS + HARMLESS)
@pytest.mark.parametrize("kind", ["text", "varchar(20)", "char(20)", "name"])
def test_the_excel_profile_guards_text_of_every_type(
    session: Session, text: str, kind: str
) -> None:
    query = f"SELECT CAST({sqltext.quote(text)} AS {kind}) AS t, CAST(NULL AS text) AS n"

    [[found, null]] = csv.reader(
        io.StringIO(copied(session, query, ResultFormat.CSV_EXCEL), newline="")
    )

    padded = text.ljust(20) if kind == "char(20)" else text
    assert found == ("'" + padded if text in FORMULAS else padded)
    assert null == ""


def test_the_excel_profile_guards_enums_arrays_and_records_too(session: Session) -> None:
    session.run("DROP TYPE IF EXISTS mood")
    session.run("CREATE TYPE mood AS ENUM ('-sad', 'glad')")
    query = (
        "SELECT CAST('-sad' AS mood) AS a, CAST('glad' AS mood) AS b, CAST(NULL AS mood) AS c,"
        " ARRAY[1, 2] AS d, CAST('-1.5' AS jsonb) AS e, ROW(NULL, NULL) AS f"
    )
    written = copied(session, query, ResultFormat.CSV_EXCEL)
    assert written == '\'-sad,glad,,"{1,2}",\'-1.5,"(,)"\n'


def test_the_excel_profile_leaves_everything_else_as_it_is(session: Session) -> None:
    query = (
        "SELECT -1 AS a, CAST(-1.50 AS numeric(5,2)) AS b, CAST(-1e20 AS double precision) AS c,"
        " DATE '-infinity' AS d, INTERVAL '-1 day' AS e, CAST('-1 days' AS interval day) AS f,"
        " TIMESTAMPTZ(3) '-infinity' AS g, TRUE AS h, NULL AS i"
    )
    raw = copied(session, query, ResultFormat.CSV)
    assert copied(session, query, ResultFormat.CSV_EXCEL) == raw
    assert raw.startswith("-1,-1.50,-1e+20,-infinity,-1 days,-1 days,-infinity,t,")


@some
@given(st.lists(hostile, min_size=1, max_size=3), _json)
def test_json_lines_are_lines_of_json(session: Session, texts: list[str], document: Any) -> None:
    pretty = json.dumps(document, indent=1)
    columns = ", ".join(f"{sqltext.quote(text)} AS c{n}" for n, text in enumerate(texts))
    query = f"SELECT {columns}, CAST({sqltext.quote(pretty)} AS json) AS j"

    line, end, rest = copied(session, query, ResultFormat.JSONL).partition("\n")

    assert (end, rest) == ("\n", "")
    assert json.loads(line) == {
        **{f"c{n}": text for n, text in enumerate(texts)},
        "j": document,
    }


def test_json_inside_of_arrays_and_records_does_not_break_lines(session: Session) -> None:
    query = (
        "SELECT ARRAY[CAST(E'{\"a\":\\r\\n1}' AS json)] AS a, ROW(CAST(E'[1,\\n2]' AS json)) AS r"
    )
    written = copied(session, query, ResultFormat.JSONL)
    assert written.count("\n") == 1
    assert json.loads(written) == {"a": [{"a": 1}], "r": {"f1": [1, 2]}}


def _array_text(values: list[str | None]) -> str:
    def element(value: str | None) -> str:
        if value is None:
            return "NULL"
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'

    return "{" + ",".join(map(element, values)) + "}"

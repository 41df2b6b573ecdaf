"""A stream stopped behind any row and continued makes the bytes of one that was not stopped."""

import datetime as dt
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa

from jobplatform import copy_stream, csvfile, errors, export, settings, templating
from jobplatform.jobs import ResultFormat
from tests.helpers import reports

_TIMEOUT = dt.timedelta(seconds=60)
# Of each order: its columns, and rows of them as SQL, no two alike and not in order.
ORDERS = {
    "bigint": (("k",), "(9223372036854775807), (-9223372036854775808), (0), (-1), (7), (10)"),
    "numeric": (("k",), "(1.5), (1.50001), (-0.25), (1e20), (123456789012345678901.5), (0.0)"),
    "double precision": (
        ("k",),
        "(0.1::float8), (1e-7), (1e300), (-2.5e-300), (0.30000000000000004), (0.3), ('Infinity')",
    ),
    "real": (("k",), "(0.1::real), (16777216), (1e-7), (-3.4e38)"),
    "text": (
        ("k",),
        r"""(''), ('a'), ('ä'), ('a,b'), ('say "x"'), (E'two\nlines'), (E'\r'), ('\.'), ('O''Neil'),
        ('null'), (' '), (E'\t'), ('10'), ('9'), ('\x41'), ('%s :name')""",
    ),
    "character": (("k",), "('a'::char(4)), ('ab'), ('b'), ('')"),
    "timestamptz": (
        ("k",),
        "('2013-01-01 05:00+00'::timestamptz), ('2013-01-01 05:00:00.000001+00'),"
        " ('2013-03-31 02:30+02'), ('1900-01-01 00:00+00')",
    ),
    "timestamp": (
        ("k",),
        "('2013-10-27 02:30'::timestamp), ('2013-10-27 02:30:00.5'), ('2014-01-01')",
    ),
    "date": (("k",), "('2013-01-01'::date), ('2012-02-29'), ('0044-03-15')"),
    "time": (("k",), "('23:59:59.999999'::time), ('00:00'), ('12:30')"),
    "interval": (
        ("k",),
        "('1 day'::interval), ('23:59:59'), ('-00:00:01'), ('1 mon'), ('2 years')",
    ),
    "uuid": (("k",), "(md5('a')::uuid), (md5('b')::uuid), (md5('c')::uuid)"),
    "bytea": (("k",), r"('\x00'::bytea), ('\x00ff'), (''), ('\x22')"),
    "boolean": (("k",), "(true), (false)"),
    "two columns": (("k", "l"), "(1, 'b'), (1, 'a'), (2, ''), (0, 'z'), (1, '-1'), (2, 'A')"),
    "three columns": (
        ("k", "l", "m"),
        "('b', '2013-01-01'::date, 2), ('b', '2013-01-01', 10), ('b', '2012-12-31', 3),"
        " ('a', '2014-01-01', 1)",
    ),
    "a name to be quoted": (('K "1",ä',), "(3), (1), (2)"),
}


def template_of(order: tuple[str, ...], values: str) -> templating.Template:
    names = ", ".join('"' + name.replace('"', '""') + '"' for name in order)
    text = f"(VALUES {values}) AS v ({names})"

    def query(params: reports.Params) -> sa.Select[Any]:
        payload = sa.literal_column(r"""E'"p",\n'""").label("payload")
        return sa.select(sa.literal_column("v.*"), payload).select_from(sa.text(text))

    return reports.template("ordered", query, order=order)


@pytest.fixture(autouse=True)
def _row_by_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each call of `write` then has one row."""
    monkeypatch.setattr(copy_stream, "is_fast", lambda connection: False)


class Stream:
    """The rows of an export, and where to go on behind each."""

    def __init__(
        self,
        address: settings.DataDatabaseSettings,
        template: templating.Template,
        format: ResultFormat,
        after: export.Position | None = None,
    ) -> None:
        self.pieces: list[bytes] = []
        self.positions: list[export.Position | None] = []
        with export.Export(
            address,
            template,
            reports.Params(),
            format=format,
            statement_timeout=_TIMEOUT,
            after=after,
        ) as running:
            running.prepare()
            self.can_continue = running.can_continue

            def write(block: bytes, rows: int, last: bytes) -> None:
                self.pieces.append(block)
                at = running.position(last) if rows and self.can_continue else None
                self.positions.append(at)

            running.run(write)


@pytest.mark.parametrize("format", list(ResultFormat))
@pytest.mark.parametrize("order", ORDERS)
def test_continued_behind_every_row_it_equals_one_copy(
    plain_data: settings.DataDatabaseSettings, order: str, format: ResultFormat
) -> None:
    names, values = ORDERS[order]
    template = template_of(names, values)

    whole = Stream(plain_data, template, format)

    texts = order in {"text", "character", "two columns", "three columns"}
    assert whole.can_continue == (not (texts and format is ResultFormat.CSV_EXCEL))
    assert len(whole.pieces) >= 2
    for index, position in enumerate(whole.positions, 1):
        if position is not None:
            rest = Stream(plain_data, template, format, after=position)
            assert whole.pieces[:index] + rest.pieces == whole.pieces


CELLS = {
    "formula": "=1+1",
    "plus": "+1",
    "minus": "-1",
    "at": "@x",
    "tab": "\tx",
    "return": "\rx",
    "in the middle": "1=1",
    "quoted formula": '=HYPERLINK("x")',
    "empty": "",
    "null": None,
    "line ends": "a\nb\r\nc",
    "number": -1,
    "guarded already": "'=1",
}
EXPECTED = {
    ResultFormat.CSV: '=1+1,+1,-1,@x,\tx,"\rx",1=1,"=HYPERLINK(""x"")","",,"a\nb\r\nc",-1,\'=1\n',
    ResultFormat.CSV_EXCEL: '\'=1+1,\'+1,\'-1,\'@x,\'\tx,"\'\rx",1=1,"\'=HYPERLINK(""x"")","",,'
    '"a\nb\r\nc",-1,\'=1\r\n',
    ResultFormat.JSONL: r'{"formula":"=1+1","plus":"+1","minus":"-1","at":"@x","tab":"\tx",'
    r'"return":"\rx","in the middle":"1=1","quoted formula":"=HYPERLINK(\"x\")","empty":"",'
    r'"null":null,"line ends":"a\nb\r\nc","number":-1,"guarded already":"' + "'=1\"}\n",
}


@pytest.mark.parametrize("format", list(ResultFormat))
@pytest.mark.parametrize("kind", ["query", "rows"])
def test_formulas_nulls_and_empty_texts(
    plain_data: settings.DataDatabaseSettings, kind: str, format: ResultFormat
) -> None:
    columns = tuple(
        templating.Column(name, "integer" if isinstance(value, int) else "text")
        for name, value in CELLS.items()
    )
    made = {
        "query": reports.template(
            "cells",
            lambda params: sa.select(
                *(
                    sa.cast(
                        sa.literal(value), sa.Integer if isinstance(value, int) else sa.Text
                    ).label(name)
                    for name, value in CELLS.items()
                )
            ),
        ),
        "rows": templating.Template(
            params=reports.Params,
            rows=lambda params, read: [tuple(CELLS.values())],
            columns=columns,
            name="cells",
        ),
    }

    text = b"".join(Stream(plain_data, made[kind], format).pieces)

    header = ",".join(CELLS).encode()
    start = {
        ResultFormat.CSV: header + b"\n",
        ResultFormat.CSV_EXCEL: csvfile.BOM + header + b"\r\n",
        ResultFormat.JSONL: b"",
    }
    assert text == start[format] + EXPECTED[format].encode()


VARYING_OBJECTS = '''
DROP SCHEMA IF EXISTS varying CASCADE;
CREATE SCHEMA varying;
CREATE FUNCTION varying.unknown(n int) RETURNS bool LANGUAGE plpgsql AS 'BEGIN RETURN n > 0; END';
CREATE FUNCTION varying."Late ""x"""(n int) RETURNS bool LANGUAGE plpgsql STABLE
    AS 'BEGIN RETURN n < extract(epoch FROM Current_Timestamp); END';
CREATE FUNCTION varying.same(n int) RETURNS bool LANGUAGE plpgsql STABLE
    AS 'BEGIN RETURN n > 0; END';
CREATE VIEW varying.recent AS SELECT k FROM generate_series(1, 9) AS k WHERE now() > '2000-01-01';
CREATE TABLE varying.days (k int, day date) PARTITION BY RANGE (day);
CREATE TABLE varying.days_of_2000 PARTITION OF varying.days
    FOR VALUES FROM ('2000-01-01') TO ('2001-01-01');
CREATE TABLE varying.days_of_2001 PARTITION OF varying.days
    FOR VALUES FROM ('2001-01-01') TO ('2002-01-01');
CREATE FUNCTION varying.standard(n int) RETURNS bool LANGUAGE sql STABLE
    BEGIN ATOMIC SELECT 1; SELECT n < extract(epoch FROM now()); END;
'''
_SERIES = "generate_series(1, 9) AS k"
VARYING = {
    "now": f"{_SERIES} WHERE now() > '2000-01-01'",
    "date": f"{_SERIES} WHERE CURRENT_DATE > '2000-01-01'",
    "timestamp": f"{_SERIES} WHERE localtimestamp(0) > '2000-01-01'",
    "clock": f"{_SERIES} WHERE pg_catalog.clock_timestamp() > '2000-01-01'",
    "age": f"{_SERIES} WHERE age('2000-01-01'::timestamp) > '1 day'",
    "word": f"{_SERIES} WHERE 'yesterday'::date > '2000-01-01'",
    "random": f"{_SERIES} WHERE random() >= 0",
    "uuid": f"{_SERIES} CROSS JOIN gen_random_uuid()",
    "standard body": f"{_SERIES} WHERE varying.standard(k)",
    "subquery": f"{_SERIES} WHERE EXISTS (SELECT FROM pg_class WHERE relpages < random())",
    "volatile function": f"{_SERIES} WHERE varying.unknown(k)",
    "function of the time": _SERIES + ' WHERE varying."Late ""x"""(k)',
    "view": "varying.recent",
    "all partitions left out": "varying.days WHERE day > now()",
    "sample": "pg_class TABLESAMPLE system (100) CROSS JOIN generate_series(1, 9) AS k",
}
SAME = {
    "plain": _SERIES,
    "stable function": f"{_SERIES} WHERE varying.same(k)",
    "text": f"{_SERIES} WHERE k::text <> 'now() or CURRENT_DATE'",
    "name": f'{_SERIES} CROSS JOIN (SELECT 1 AS "now()") AS q WHERE "now()" = 1',
    "other times": f"{_SERIES} WHERE to_timestamp('2000', 'YYYY')::timestamp > '1999-01-01'",
    "partitions": "varying.days WHERE day > '2000-05-05'",
}


@pytest.mark.parametrize("consistency", ["snapshot", "live"])
@pytest.mark.parametrize("source", [*VARYING, *SAME])
def test_what_another_session_may_see_otherwise_is_not_continued(
    plain_data: settings.DataDatabaseSettings,
    backends: reports.Backends,
    source: str,
    consistency: str,
) -> None:
    backends.run(VARYING_OBJECTS)
    template = reports.template(
        "varying",
        lambda params: sa.select(sa.text("k FROM " + {**VARYING, **SAME}[source])),
        order=("k",),
        consistency=consistency,
    )

    stream = Stream(plain_data, template, ResultFormat.CSV)

    assert stream.can_continue == (source in SAME or consistency == "live")


@pytest.mark.parametrize("consistency", ["snapshot", "live"])
@pytest.mark.parametrize(("now", "readers"), [(sa.func.now(), 2), (sa.text("now()"), 1)])
def test_only_what_each_session_sees_alike_is_split(
    plain_data: settings.DataDatabaseSettings,
    backends: reports.Backends,
    monkeypatch: pytest.MonkeyPatch,
    now: Any,
    readers: int,
    consistency: str,
) -> None:
    monkeypatch.setattr(export, "_SPLIT_ROWS", 0)
    backends.run("DROP TABLE IF EXISTS split")
    backends.run("CREATE TABLE split AS SELECT generate_series(1, 5000) AS k, now() AS at")
    backends.run("ALTER TABLE split ADD PRIMARY KEY (k)")
    backends.run("ANALYZE split")
    split = sa.table("split", sa.column("k"), sa.column("at"))

    def query(params: Any) -> sa.Select[Any]:
        return sa.select(split.c.k).where(split.c.at <= now)

    pieces: list[bytes] = []
    with _begun(plain_data, query, {"split_by": "k", "consistency": consistency}) as begun:
        begun.run(lambda block, rows, last: pieces.append(block))
        assert begun.readers == readers

    assert b"".join(pieces).decode().split() == ["k", *map(str, range(1, 5001))]


@pytest.mark.parametrize("ordered", [True, False])
def test_any_so_many_rows_are_read_by_one_session(
    plain_data: settings.DataDatabaseSettings, ordered: bool
) -> None:
    def query(params: Any) -> sa.Select[Any]:
        statement = sa.select(sa.text(f"k FROM {_SERIES}")).limit(5)
        return statement.order_by(sa.text("k DESC")) if ordered else statement

    with _begun(plain_data, query) as begun:
        assert begun.can_continue == ordered


def _begun(
    address: settings.DataDatabaseSettings,
    query: Callable[[Any], sa.Select[Any]],
    fields: dict[str, Any] | None = None,
    **changes: Any,
) -> export.Export:
    begun = export.Export(
        address,
        reports.template("begun", query, order=("k",), **(fields or {})),
        reports.Params(),
        format=ResultFormat.CSV,
        statement_timeout=_TIMEOUT,
        **changes,
    )
    begun.prepare()
    return begun


def test_the_time_is_that_of_the_beginning_in_every_session(
    plain_data: settings.DataDatabaseSettings,
) -> None:
    def query(params: Any) -> sa.Select[Any]:
        day_before = sa.func.now() - sa.literal(dt.timedelta(days=1))
        selected = sa.select(sa.text("k"), sa.func.now().label("at"), day_before.label("before"))
        return selected.select_from(sa.text(_SERIES))

    pieces: list[bytes] = []
    with _begun(plain_data, query) as first:
        changes: dict[str, Any] = {"snapshot": first._sessions[0].share(), "as_of": first.as_of}
        after = export.Position(("8",))
        with _begun(plain_data, query, after=after, **changes) as second:
            assert second._sessions[0].as_of > first.as_of
            assert second.can_continue
            assert second.query_digest == first.query_digest
            second.run(lambda block, rows, last: pieces.append(block))

    key, *times = b"".join(pieces).decode().strip().split(",")
    at, before = map(dt.datetime.fromisoformat, times)
    assert (key, at, before) == ("9", first.as_of, first.as_of - dt.timedelta(days=1))


def test_a_continuation_that_finds_nothing_at_all_is_refused(
    plain_data: settings.DataDatabaseSettings,
) -> None:
    def query(last: int) -> Callable[[Any], sa.Select[Any]]:
        return lambda params: sa.select(sa.text(f"k FROM generate_series(1, {last}) AS k"))

    with _begun(plain_data, query(9)) as first:
        changes: dict[str, Any] = {"snapshot": first._sessions[0].share(), "as_of": first.as_of}
        after = export.Position(("5",))
        with (
            _begun(plain_data, query(4), after=after, **changes) as second,
            pytest.raises(errors.TemplateRejected, match="which row is next"),
        ):
            second.run(lambda *_: None)


def test_a_query_is_the_same_whatever_the_order_of_its_words(
    plain_data: settings.DataDatabaseSettings,
) -> None:
    def query(*names: str) -> Callable[[Any], sa.Select[Any]]:
        k = sa.literal("a").label("k")
        return lambda params: sa.select(k).where(k.in_(names))

    with (
        _begun(plain_data, query("a", "b c")) as one,
        _begun(plain_data, query("b c", "a")) as same,
        _begun(plain_data, query("a", "b d")) as other,
    ):
        assert one.query_digest == same.query_digest
        assert one.query_digest != other.query_digest

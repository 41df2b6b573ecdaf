"""A stream stopped behind any row and continued makes the bytes of one that was not stopped."""

import datetime as dt
from typing import Any

import pytest
import sqlalchemy as sa

from jobplatform import copy_stream, csvfile, export, settings, templating
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

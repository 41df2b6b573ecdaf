"""The data that is exported: ten times the flights of 2013, and a wide table with text."""

from collections.abc import Callable
from typing import Any

import pydantic
import sqlalchemy as sa

from infra.local import flights
from infra.local.postgres import connect
from jobplatform import templating
from templates.flights import flights as flights_table

ROWS = 10 * flights.ROWS
_TEXTS, _NUMBERS, _AMOUNTS, _TIMES = 16, 8, 4, 4
# What makes CSV hard: quotes, commas, line ends, other scripts, the empty text and NULL.
_TEXT = """CASE (g + {n}) % 8
    WHEN 0 THEN NULL
    WHEN 1 THEN ''
    WHEN 2 THEN 'says "' || left(md5((g * {n})::text), 12) || '", and more'
    WHEN 3 THEN 'Straße ' || g || E'\\nÅrhus, 日本'
    ELSE md5((g + {n})::text) || ' ' || left(md5((g * {n})::text), 10)
END AS text_{n}"""


def load(url: str, *, rows: int, told: Callable[[str], None]) -> None:
    """Makes `flights` with `rows` rows and `wide` with an eighth of it, in the order of the ids."""
    told("loading the flights of 2013")
    flights.load(url)
    connection = connect(url)
    try:
        told(f"generating {rows:,} flights")
        columns = [column.name for column in flights_table.columns if column.name != "id"]
        names = ", ".join(columns)
        connection.run("BEGIN")
        connection.run("SET LOCAL maintenance_work_mem = '256MB'")
        connection.run(
            f"CREATE TABLE many AS SELECT (g - 1) * {flights.ROWS} + id AS id, {names}"
            f" FROM generate_series(1, {-(-rows // flights.ROWS)}) AS g, flights"
            f" WHERE (g - 1) * {flights.ROWS} + id <= {rows} ORDER BY 1"
        )
        connection.run("DROP TABLE flights")
        connection.run("ALTER TABLE many RENAME TO flights")
        connection.run("ALTER TABLE flights ADD PRIMARY KEY (id)")
        told(f"generating {rows // 8:,} wide rows")
        connection.run(
            f"CREATE TABLE wide AS SELECT {_wide_columns()}"
            f" FROM generate_series(1, {rows // 8}) AS g"
        )
        connection.run("ALTER TABLE wide ADD PRIMARY KEY (id)")
        connection.run("COMMIT")
        # So that no measured query is the first to look at these pages.
        for table in ("flights", "wide"):
            connection.run(f"VACUUM (FREEZE, ANALYZE) {table}")
    finally:
        connection.close()


def _wide_columns() -> str:
    return ", ".join(
        [
            "g::bigint AS id",
            *(_TEXT.format(n=n) for n in range(1, _TEXTS + 1)),
            *(f"((g * {n}) % 100000)::integer AS number_{n}" for n in range(1, _NUMBERS + 1)),
            *(
                f"round(((g * {n}) % 1000003) / 7.0, 4) AS amount_{n}"
                for n in range(1, _AMOUNTS + 1)
            ),
            *(
                f"timestamptz '2024-01-01 00:00:00+00' + g * {n} * interval '1 second' AS time_{n}"
                for n in range(1, _TIMES + 1)
            ),
        ]
    )


class Params(templating.Params):
    """The wide table has none."""


_WIDE_NAMES = [
    "id",
    *(f"text_{n}" for n in range(1, _TEXTS + 1)),
    *(f"number_{n}" for n in range(1, _NUMBERS + 1)),
    *(f"amount_{n}" for n in range(1, _AMOUNTS + 1)),
    *(f"time_{n}" for n in range(1, _TIMES + 1)),
]


def _wide_query(params: pydantic.BaseModel) -> sa.Select[Any]:
    wide = sa.table("wide", *(sa.column(name) for name in _WIDE_NAMES))
    return sa.select(wide).order_by(wide.c.id)


WIDE = templating.Template(
    params=Params, query=_wide_query, order=("id",), split_by="id", name="wide"
)

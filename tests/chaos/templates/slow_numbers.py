"""Slow numbers

A row every few milliseconds, so that a job outlives its first lease many times over.
"""

from typing import Annotated, Any

import pydantic
import sqlalchemy as sa

from jobplatform.templating import Params as BaseParams
from jobplatform.templating import Template


class Params(BaseParams):
    rows: Annotated[int, pydantic.Field(ge=1, le=10_000)] = 600
    milliseconds: Annotated[int, pydantic.Field(ge=0, le=1_000)] = 12
    """For each row."""


def query(params: Params) -> sa.Select[Any]:
    number = sa.func.generate_series(1, params.rows).table_valued("number").render_derived()
    # The number in it makes PostgreSQL sleep anew for each row.
    seconds = sa.literal(params.milliseconds / 1000) + number.c.number * 0
    slept = sa.func.pg_sleep(seconds).table_valued("nothing").lateral()
    # Long rows, so that some leave the server before the last is ready.
    text = sa.func.repeat(sa.func.md5(sa.cast(number.c.number, sa.Text)), 20)
    return sa.select(
        sa.cast(number.c.number, sa.Integer).label("number"), text.label("text")
    ).select_from(number.join(slept, sa.true()))


template = Template(params=Params, query=query)

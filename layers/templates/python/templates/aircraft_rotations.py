"""Rotations of each aircraft

The longest unbroken chain of days on which an aircraft flew, per tail number: for each row it
depends on the row before, so it is written as a row generator in Python.
"""

import datetime as dt
from collections.abc import Iterator
from typing import Annotated

import pydantic
import sqlalchemy as sa

from jobplatform.templating import Column, Read, Template
from jobplatform.templating import Params as BaseParams
from templates.flights import flights


class Params(BaseParams):
    min_days: Annotated[int, pydantic.Field(ge=1, le=366)] = 2
    """Leave out shorter chains."""


def rows(params: Params, read: Read) -> Iterator[tuple[str, dt.date, int, int]]:
    day = sa.func.make_date(flights.c.year, flights.c.month, flights.c.day)
    days = (
        sa.select(flights.c.tailnum, day.label("day"), sa.func.count().label("flights"))
        .where(flights.c.tailnum.is_not(None))
        .group_by(flights.c.tailnum, day)
        .order_by(flights.c.tailnum, day)
    )
    best: tuple[str, dt.date, int, int] | None = None
    current: tuple[str, dt.date, int, int] | None = None
    for tailnum, date, count in read(days):
        if current and current[0] == tailnum and date == current[1] + dt.timedelta(current[2]):
            current = (tailnum, current[1], current[2] + 1, current[3] + count)
        else:
            current = (tailnum, date, 1, count)
        if best and best[0] != tailnum:
            if best[2] >= params.min_days:
                yield best
            best = current
        elif not best or current[2] > best[2]:
            best = current
    if best and best[2] >= params.min_days:
        yield best


template = Template(
    params=Params,
    rows=rows,
    columns=(
        Column("tailnum", "text"),
        Column("first_day", "date"),
        Column("days", "integer"),
        Column("flights", "bigint"),
    ),
)

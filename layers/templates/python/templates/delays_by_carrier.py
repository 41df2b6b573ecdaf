"""Delays by carrier and month

Flights, cancellations and delays in minutes, by airline and month of 2013.
"""

from typing import Annotated, Any

import pydantic
import sqlalchemy as sa

from jobplatform.templating import Params as BaseParams
from jobplatform.templating import Template
from templates.flights import flights


class Params(BaseParams):
    month: Annotated[int, pydantic.Field(ge=1, le=12)] | None = None
    """One month only."""
    min_flights: Annotated[int, pydantic.Field(ge=1)] = 1
    """Leave out carriers with fewer flights in a month."""


def query(params: Params) -> sa.Select[Any]:
    count = sa.func.count()
    statement = (
        sa.select(
            flights.c.carrier,
            flights.c.month,
            count.label("flights"),
            count.filter(flights.c.dep_time.is_(None)).label("cancelled"),
            sa.func.round(sa.func.avg(flights.c.dep_delay), 2, type_=sa.Numeric).label(
                "mean_dep_delay"
            ),
            sa.func.percentile_cont(0.95).within_group(flights.c.arr_delay).label("p95_arr_delay"),
        )
        .group_by(flights.c.carrier, flights.c.month)
        .having(count >= params.min_flights)
        .order_by(flights.c.carrier, flights.c.month)
    )
    if params.month:
        statement = statement.where(flights.c.month == params.month)
    return statement


template = Template(params=Params, query=query)

"""What each plan allows; API Gateway enforces the first three numbers, Postgres the others.

Adopters change their offer here. `infra` makes one API Gateway usage plan of each entry, and a key
is bound to one plan by name, so a renamed plan needs its keys moved first.
"""

import dataclasses
from datetime import timedelta


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    name: str
    requests_per_second: int
    """Steady rate (API Gateway throttle `rateLimit`), requests/s."""
    burst: int
    """Requests that may arrive at once above the rate (token bucket size)."""
    requests_per_day: int
    """Daily quota, requests."""
    max_queued: int
    """Jobs of one client that may wait or run at once; over it a submit answers 429."""
    max_waits: int
    """Requests of one client that may wait for a job's end at once; others are answered at once."""
    weight: int
    """Share of the workers when several clients wait, relative to the other plans."""
    max_rows: int | None
    """Rows in one result; None: no limit but the template's."""
    max_bytes: int | None
    """Bytes in one result before compression; None: no limit but the template's."""
    statement_timeout: timedelta | None = None
    """Time that a report's query may take; None: no limit but the template's and the worker's."""


BASIC = Plan(
    name="basic",
    requests_per_second=5,
    burst=10,
    requests_per_day=10_000,
    max_queued=100,
    max_waits=5,
    weight=1,
    max_rows=10_000_000,
    max_bytes=10 * 2**30,
)
PRO = Plan(
    name="pro",
    requests_per_second=100,
    burst=200,
    requests_per_day=1_000_000,
    max_queued=2_000,
    max_waits=20,
    weight=4,
    max_rows=None,
    max_bytes=None,
)

PLANS = {plan.name: plan for plan in (BASIC, PRO)}

"""What is submitted by whom: made of the seed alone, before anything runs."""

import dataclasses
import datetime as dt
import random
from typing import Any

from tests.chaos.options import Options

CLIENTS = ("anna", "bert", "cleo")

# Ten weeks are two parts of 5 MiB and more; few different ones, as each is copied once to compare.
_LONG = tuple(
    {
        "date_from": (dt.date(2013, 1, 1) + dt.timedelta(days=24 * n)).isoformat(),
        "date_to": (dt.date(2013, 1, 1) + dt.timedelta(days=24 * n + 70)).isoformat(),
    }
    for n in range(12)
)
_CARRIERS = ("9E", "AA", "AS", "F9", "FL", "HA", "MQ", "OO", "US", "VX", "WN", "YV")
_ORIGINS = ("EWR", "JFK", "LGA")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Intent:
    """One job that somebody wants."""

    number: int
    client: str
    template: str
    parameters: dict[str, Any]
    compression: str
    key: str | None
    """Idempotency-Key; without one the request is sent once, whatever becomes of it."""
    at_once: int
    """How many requests with the key are sent at the same time."""
    run_in: float | None
    """Seconds from now, as `run_at`."""
    cancel_after: float | None
    """Seconds after it was accepted."""
    hopeless: bool
    """It has to fail: its template refuses the parameters."""


def make(options: Options, run_id: str) -> list[Intent]:
    rng = random.Random(f"{options.seed} intents")
    return [_intent(number, options, run_id, rng) for number in range(options.jobs)]


def _intent(number: int, options: Options, run_id: str, rng: random.Random) -> Intent:
    hopeless = not options.templates and rng.random() < 0.03
    if options.templates:
        wanted = rng.choice(options.templates)
        template, parameters = wanted.template, wanted.parameters
    elif hopeless:
        template, parameters = "hopeless", {}
    else:
        template, parameters = _work(rng)
    key = f"{run_id}-{number}" if rng.random() < 0.8 else None
    return Intent(
        number=number,
        client=rng.choice(CLIENTS),
        template=template,
        parameters=parameters,
        compression="gzip" if rng.random() < 0.25 else "none",
        key=key,
        at_once=rng.randint(2, 4) if key and rng.random() < 0.12 else 1,
        run_in=rng.uniform(2, 10) if rng.random() < 0.08 else None,
        cancel_after=rng.uniform(0, 4) if not hopeless and rng.random() < 0.1 else None,
        hopeless=hopeless,
    )


def _work(rng: random.Random) -> tuple[str, dict[str, Any]]:
    draw = rng.random()
    if draw < 0.07:
        return "slow_numbers", {"rows": rng.choice((600, 750))}
    if draw < 0.18:
        return "flights", rng.choice(_LONG)
    if draw < 0.21:
        return "aircraft_rotations", {"min_days": rng.choice((5, 20))}
    if draw < 0.4:
        return "delays_by_carrier", {"month": rng.randint(1, 12)}
    return "flights", {
        "carrier": rng.choice(_CARRIERS),
        "origin": rng.choice(_ORIGINS),
        "date_to": f"2013-{rng.randint(1, 6):02}-28",
    }

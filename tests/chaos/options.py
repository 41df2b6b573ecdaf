"""What a run is asked for."""

import argparse
import dataclasses
import json
import random
import re
from collections.abc import Mapping, Sequence
from typing import Any

from tests.chaos import protections


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wanted:
    """A template of the person who runs this, with parameters to try it with."""

    template: str
    parameters: dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    seed: int
    jobs: int
    minutes: float
    """Longest time for submitting; what has not been submitted by then is left out."""
    templates: tuple[Wanted, ...] = ()
    """Instead of the mix of our own."""
    database_url: str | None = None
    """The data that the templates read; it must not change during the run."""
    without: str | None = None
    """Name of a protection to take out, see `protections`."""


def parse(arguments: Sequence[str], environ: Mapping[str, str]) -> Options:
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos",
        description="Break a deployed platform on purpose and check its promises.",
        epilog="SEED, JOBS and MINUTES can be variables too: make chaos SEED=7 JOBS=200",
    )
    parser.add_argument("--seed", type=int, default=_number(environ, "SEED"), metavar="N")
    parser.add_argument("--jobs", type=int, default=_number(environ, "JOBS") or 1000, metavar="N")
    parser.add_argument(
        "--minutes",
        type=float,
        default=float(environ.get("MINUTES") or 15),
        help="longest time for submitting",
    )
    parser.add_argument(
        "--template",
        action="append",
        default=[],
        type=_wanted,
        metavar="NAME[:JSON]",
        help="a template of layers/templates and its parameters; can be repeated",
    )
    parser.add_argument(
        "--data-database-url", metavar="URL", help="the data that your templates read"
    )
    parser.add_argument(
        "--without",
        choices=sorted(protections.PROTECTIONS),
        help="take out one protection, to see that it is missed",
    )
    given = parser.parse_args(arguments)
    return Options(
        seed=given.seed if given.seed is not None else random.randrange(2**31),
        jobs=given.jobs,
        minutes=given.minutes,
        templates=tuple(given.template),
        database_url=given.data_database_url,
        without=given.without,
    )


def _number(environ: Mapping[str, str], name: str) -> int | None:
    text = environ.get(name, "")
    return int(text) if text else None


def _wanted(text: str) -> Wanted:
    name, _, parameters = text.partition(":")
    if not re.fullmatch(r"\w+", name):
        raise argparse.ArgumentTypeError(f"{name!r} is not the name of a template")
    try:
        return Wanted(template=name, parameters=json.loads(parameters or "{}"))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{parameters!r} is not JSON: {error}") from error

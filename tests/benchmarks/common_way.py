"""The export against the common way: rows through SQLAlchemy, written by csv.writer.

Both ways discard what they write. The common way runs in a process of its own, and its clock starts
when that has imported everything.
"""

import functools
import json
from collections.abc import Iterator
from pathlib import Path

from jobplatform import sqltext
from templates import flights
from tests.benchmarks import export
from tests.benchmarks.bench import Bench
from tests.benchmarks.bench import run as run_program
from tests.benchmarks.measuring import Goal, Result, interleave

_PEER = Path(__file__).parent / "peers" / "rows.py"


def run(bench: Bench) -> Iterator[Result]:
    template = flights.template
    assert template.query is not None
    query = sqltext.select(template.query(template.params()))
    bench.peers, bench.data  # noqa: B018 - made before a clock runs
    samples = interleave(
        {
            "ours": lambda: export.discard(bench, template),
            "asyncpg": functools.partial(_rows, bench, "asyncpg", query),
            "pg8000": functools.partial(_rows, bench, "pg8000", query),
        },
        rounds=bench.rounds(3),
        told=bench.told,
        warm=False,
    )
    for driver, goal in (("pg8000", 15.0), ("asyncpg", 7.0)):
        yield samples.result(
            f"SQLAlchemy + {driver} + csv.writer / export",
            "ours",
            driver,
            Goal(goal, "at least"),
            inverse=True,
        )


def _rows(bench: Bench, driver: str, query: str) -> float:
    url = str(bench.data.url).partition("?")[0]
    given = json.dumps({"url": url, "driver": driver, "query": query})
    command = [str(bench.peers), str(_PEER)]
    return float(run_program(command, environ=bench.psql_environ(), given=given))

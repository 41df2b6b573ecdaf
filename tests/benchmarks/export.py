"""The export into a discarding sink, against psql's \\copy of the same query to /dev/null.

Same server, same session settings, TCP on loopback. Ours starts with connecting and ends with
closing, as psql does; before the clock runs, both are compared byte by byte.
"""

import dataclasses
import datetime as dt
import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from jobplatform import export as exporting
from jobplatform import sqltext
from jobplatform.jobs import ResultFormat
from jobplatform.templating import Template
from templates import flights
from tests.benchmarks import data
from tests.benchmarks.bench import Bench
from tests.benchmarks.bench import run as run_program
from tests.benchmarks.measuring import Goal, Result, Timed, interleave

ONE_READER, TWO_READERS = Goal(1.0), Goal(0.70)


def run(bench: Bench) -> Iterator[Result]:
    for name, template in (("flights", flights.template), ("wide", data.WIDE)):
        yield from _compare(bench, name, template)


def _compare(bench: Bench, name: str, template: Template) -> Iterator[Result]:
    assert template.query is not None
    query = sqltext.select(template.query(template.params()))
    alone = dataclasses.replace(template, split_by=None)
    bench.told(f"{name}: comparing the bytes of all ways")
    psql_says = hashlib.sha256(
        run_program(bench.copied(query, "pstdout"), environ=bench.psql_environ())
    ).hexdigest()
    for readers, way in ((1, alone), (2, template)):
        digest = hashlib.sha256()
        found = export(bench, way, digest.update)
        if digest.hexdigest() != psql_says:
            raise AssertionError(f"{name}: {readers} readers write other bytes than psql")
        if found != readers and bench.rows >= data.ROWS:
            raise AssertionError(f"{name}: {found} readers worked instead of {readers}")

    ways: dict[str, Timed] = {
        "psql": psql_to(bench, query, Path("/dev/null")),
        "one reader": lambda: discard(bench, alone),
        "two readers": lambda: discard(bench, template),
    }
    samples = interleave(
        ways,
        rounds=bench.rounds(7),
        told=lambda text: bench.told(f"{name}: {text}"),
    )
    yield samples.result(f"export {name}, one reader / psql", "one reader", "psql", ONE_READER)
    yield samples.result(f"export {name}, two readers / psql", "two readers", "psql", TWO_READERS)
    yield from _processors(bench, name, ways)


def _processors(bench: Bench, name: str, ways: dict[str, Timed]) -> Iterator[Result]:
    """Where the time goes: processor seconds of the server and of the client, which run at once."""
    used = {}
    for way, work in ways.items():
        bench.told(f"{name}: processor time of {way}")
        used[way] = _processor_seconds(bench, work)
    server, client = used["psql"]
    for way in ("one reader", "two readers"):
        its_server, its_client = used[way]
        ratio = (its_server + its_client) / (server + client)
        yield Result(
            name=f"export {name}, processor time of {way} / psql",
            ratio=ratio,
            goal=None,
            spread=(ratio, ratio),
            ours=f"{its_server:.2f} s + {its_client:.2f} s",
            theirs=f"{server:.2f} s + {client:.2f} s",
            note="server + client",
        )


def _processor_seconds(bench: Bench, work: Timed) -> tuple[float, float]:
    postmaster = psutil.Process(bench.server.process.pid)
    _wait_for_sessions_to_end(postmaster)
    server, client = _of_children(postmaster), sum(os.times()[:4])
    work()
    client = sum(os.times()[:4]) - client
    _wait_for_sessions_to_end(postmaster)
    return _of_children(postmaster) - server, client


def _wait_for_sessions_to_end(postmaster: psutil.Process) -> None:
    """A session's time is added to the postmaster's when that has noticed its end."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if all(map(_is_the_servers_own, postmaster.children())):
            return
        time.sleep(0.01)
    raise AssertionError("sessions are left")


def _is_the_servers_own(process: psutil.Process) -> bool:
    """Not a session; one that is ending shows no command line any more."""
    try:
        command = " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return False
    return command.startswith("postgres: ") and not command.startswith("postgres: platform ")


def _of_children(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.children_user + times.children_system)


def export(bench: Bench, template: Template, sink: object) -> int:
    """Exports to a function that takes bytes; answers how many sessions read."""
    assert callable(sink)
    with exporting.Export(
        bench.data,
        template,
        template.params(),
        format=ResultFormat.CSV,
        statement_timeout=dt.timedelta(minutes=30),
    ) as running:
        running.prepare()
        running.run(lambda block, rows, last: sink(block))
        return running.readers


def discard(bench: Bench, template: Template) -> None:
    export(bench, template, _nothing)


def _nothing(block: bytes) -> None:
    pass


def psql_to(bench: Bench, query: str, sink: Path) -> Timed:
    command, environ = bench.copied(query, str(sink)), bench.psql_environ()

    def work() -> None:
        run_program(command, environ=environ)

    return work

"""Peak memory of the worker at 10 GB against 100 MB, and against 200 MB.

Each export runs in a fresh process, through the worker's handler and boto3, into an S3 that keeps
nothing. What counts is the process's own high-water mark (VmHWM: `ru_maxrss` would count what the
parent had when it started the child).
"""

import functools
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from infra.local import paths
from infra.local.postgres import connect
from jobplatform.settings import WORKER_ALLOCATOR
from tests.benchmarks import data
from tests.benchmarks.bench import Bench, discard_output
from tests.benchmarks.bench import run as run_program
from tests.benchmarks.measuring import Goal, Result, Samples, interleave, mebibytes
from tests.benchmarks.templates.generated import ROW_BYTES, TABLE

_SMALL, _LARGE, _LIMIT = 100_000_000, 10_000_000_000, 200_000_000
TEMPLATES = Path(__file__).parent / "templates"


def run(bench: Bench) -> Iterator[Result]:
    large = max(2 * _SMALL, int(_LARGE * min(1.0, bench.rows / data.ROWS)))
    bench.functions  # noqa: B018 - servers are started before
    _make_ids(bench, large // ROW_BYTES)
    with subprocess.Popen(
        [sys.executable, "-m", "tests.benchmarks.discarding_s3"],
        cwd=paths.ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as s3:
        assert s3.stdin is not None
        assert s3.stdout is not None
        try:
            endpoint = f"http://127.0.0.1:{int(s3.stdout.readline())}"
            samples = interleave(
                {
                    "small": functools.partial(_peak, bench, endpoint, _SMALL),
                    "large": functools.partial(_peak, bench, endpoint, large),
                },
                rounds=bench.rounds(3),
                told=bench.told,
                warm=False,
            )
        finally:
            s3.stdin.close()
    size = f"{large / 1e9:g} GB"
    yield samples.result(
        f"peak memory, {size} / 100 MB", "large", "small", Goal(1.1), show=mebibytes
    )
    samples = Samples({**samples.values, "limit": [_LIMIT] * len(samples.values["large"])})
    yield samples.result(
        f"peak memory, {size} / 200 MB", "large", "limit", Goal(1.0), show=mebibytes
    )


def _make_ids(bench: Bench, rows: int) -> None:
    bench.told(f"generating {rows:,} ids")
    connection = connect(str(bench.data.url))
    connection.run("BEGIN")
    connection.run(f"CREATE TABLE {TABLE} AS SELECT g AS id FROM generate_series(1, {rows}) AS g")
    connection.run(f"ALTER TABLE {TABLE} ALTER id SET NOT NULL, ALTER id TYPE bigint")
    connection.run("SET LOCAL maintenance_work_mem = '256MB'")
    connection.run(f"ALTER TABLE {TABLE} ADD PRIMARY KEY (id)")
    connection.run("COMMIT")
    connection.run(f"VACUUM (FREEZE, ANALYZE) {TABLE}")
    connection.close()


def _peak(bench: Bench, endpoint: str, size: int) -> float:
    given = json.dumps({"rows": size // ROW_BYTES, "client_id": str(bench.client_id)})
    said = run_program(
        [sys.executable, "-m", "tests.benchmarks.memory"],
        environ={**os.environ, **WORKER_ALLOCATOR, "AWS_ENDPOINT_URL_S3": endpoint},
        given=given,
    )
    found = json.loads(said)
    if found["bytes"] < 0.9 * size:
        raise AssertionError(f"the export has {found['bytes']} bytes instead of about {size}")
    return float(found["peak"])


def _export_here() -> None:
    """The child: one job through the worker's handler; prints its size and this process's peak."""
    given = json.load(sys.stdin)
    out = sys.stdout
    discard_output()

    import templates

    templates.__path__.append(str(TEMPLATES))
    from functions.worker import handler
    from tests.benchmarks import events, jobs

    job = jobs.submit(given["client_id"], "generated", {"rows": given["rows"]})
    handler.lambda_handler(events.doorbell(str(job.id)), events.Context())
    done = jobs.done(job.id)
    json.dump({"bytes": done.bytes, "peak": _high_water_mark()}, out)


def _high_water_mark() -> int:
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    [line] = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    _export_here()

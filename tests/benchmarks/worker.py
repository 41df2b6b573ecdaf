"""The whole worker into S3, against psql piped into `aws s3 cp`, on the same S3; plain and gzip.

Ours is the worker's handler with a doorbell: claim, export, upload with SHA-256, manifest, publish.
The pipe is what a shell gives for the same file, without any of that.
"""

import functools
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator
from typing import Any

from jobplatform import sqltext
from jobplatform.jobs import Compression
from templates import flights
from tests.benchmarks import environment, events, jobs
from tests.benchmarks.bench import BUCKET, Bench
from tests.benchmarks.measuring import Goal, Result, interleave

_KEY = "benchmark/piped.csv"


def run(bench: Bench) -> Iterator[Result]:
    bench.peers, bench.data, bench.functions  # noqa: B018 - made before a clock runs
    for name, compression, squeeze, goal in (
        ("plain", Compression.NONE, "", 0.8),
        ("gzip", Compression.GZIP, "gzip -1 | ", 0.6),
    ):
        samples = interleave(
            {
                "worker": functools.partial(_work, bench, compression),
                "pipe": functools.partial(_pipe, bench, squeeze),
            },
            rounds=bench.rounds(5),
            told=lambda text, name=name: bench.told(f"{name}: {text}"),  # type: ignore[misc]
        )
        yield samples.result(
            f"worker into S3, {name} / psql | {squeeze}aws s3 cp", "worker", "pipe", Goal(goal)
        )


def _work(bench: Bench, compression: Compression) -> float:
    from functions.worker import handler

    job = jobs.submit(bench.client_id, "flights", compression=compression)
    event, context = events.doorbell(str(job.id)), events.Context()
    began = time.perf_counter()
    handler.lambda_handler(event, context)
    taken = time.perf_counter() - began
    result = jobs.done(job.id)
    if result.rows != bench.rows:
        raise AssertionError(f"the job has {result.rows} rows instead of {bench.rows}")
    for key in (result.key, f"{result.key}.manifest.json"):
        bench.aws("s3").delete_object(Bucket=BUCKET, Key=key)
    return taken


def _pipe(bench: Bench, squeeze: str) -> float:
    template: Any = flights.template
    query = sqltext.select(template.query(template.params()))
    psql = shlex.join(bench.copied(query, "pstdout"))
    copy = shlex.join([str(environment.AWS), "s3", "cp", "--quiet", "-", f"s3://{BUCKET}/{_KEY}"])
    began = time.perf_counter()
    _shell(
        f"set -o pipefail; {psql} | {squeeze}{copy}",
        {**bench.psql_environ(), **bench.emulator.environ(), "PATH": os.environ["PATH"]},
    )
    taken = time.perf_counter() - began
    bench.aws("s3").delete_object(Bucket=BUCKET, Key=_KEY)
    return taken


def _shell(line: str, environ: dict[str, str]) -> None:
    process = subprocess.Popen(
        ["bash", "-c", line],
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        _, said = process.communicate(timeout=1800)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    if process.returncode != 0:
        raise RuntimeError(f"{line[:40]}… failed: {said.decode(errors='replace')[-2000:]}")

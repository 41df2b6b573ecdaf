"""Submissions, jobs and the time from submit to done, against FastAPI + Arq + Redis.

Both sides share the machine, PostgreSQL and S3 and take turns. Ours is the whole platform on the
embedded target: REST API, Lambdas, SQS of the emulator. An empty Lambda behind the same kind of API
shows what of ours is the emulator's.
"""

import contextlib
import functools
import io
import json
import os
import statistics
import subprocess
import sys
import time
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from infra.local.errors import tail
from infra.local.postgres import connect
from infra.local.processes import ProcessRef, free_port, wait_until
from infra.local.up import LocalTarget
from jobplatform import sqltext
from templates import flights
from tests.benchmarks import environment
from tests.benchmarks.bench import API_KEY, Bench
from tests.benchmarks.bench import run as run_program
from tests.benchmarks.measuring import (
    Goal,
    Result,
    Samples,
    interleave,
    per_second,
    seconds,
)

_PEERS = Path(__file__).parent / "peers"
_PLAN = "pro"
_PARAMETERS = {"carrier": "OO"}
_BODY = {"template_name": "flights", "parameters": _PARAMETERS}
_FLIGHTS = 1_000
"""Rows of the table: small, so that a job costs what a job costs, not what its query does."""
_MANY, _REQUESTS, _ONE_REQUESTS, _DONE_JOBS = 16, 640, 160, 15
_WARMING = 4
"""Requests of each client before those that are measured."""


def run(bench: Bench) -> Iterator[Result]:
    bench.peers  # noqa: B018 - installed before anything starts
    bench.told("deploying the platform")
    with contextlib.ExitStack() as stack:
        target = LocalTarget(bench.folder / "target", sample_data=False)
        stack.enter_context(target)
        sides = {
            "platform": _Platform(target),
            "FastAPI + Arq": stack.enter_context(_peer(target, bench)),
        }
        empty = _empty_lambda(target)
        yield from _requests(bench, sides, empty)
        yield from _until_done(bench, sides)


class _Platform:
    """The deployed platform, seen from outside and in its database."""

    finished = "SELECT count(*) FROM jobplatform.jobs WHERE finished_at IS NOT NULL"
    durations = (
        "SELECT extract(epoch FROM finished_at - created_at)::float FROM jobplatform.jobs"
        " ORDER BY created_at DESC LIMIT :n"
    )
    failed = "SELECT count(*) FROM jobplatform.jobs WHERE status IN ('failed', 'cancelled')"

    def __init__(self, target: LocalTarget) -> None:
        _load_flights(target.state.data_database_url)
        _lift_limits(target)
        self.url = f"{target.api_url}/jobs"
        self.key = target.keys[_PLAN]
        self.database_url = target.state.database_url


class _Peer:
    finished = "SELECT count(*) FROM jobs WHERE finished_at IS NOT NULL"
    durations = (
        "SELECT extract(epoch FROM finished_at - created_at)::float FROM jobs"
        " ORDER BY created_at DESC LIMIT :n"
    )
    failed = "SELECT 0"
    key = API_KEY

    def __init__(self, url: str, database_url: str) -> None:
        self.url = url
        self.database_url = database_url


_Side = _Platform | _Peer


def _requests(
    bench: Bench, sides: dict[str, _Side], empty: Callable[[int, int], float]
) -> Iterator[Result]:
    for clients, requests in ((_MANY, _REQUESTS), (1, _ONE_REQUESTS)):
        rates: dict[str, list[float]] = {}
        ways: dict[str, Callable[[], float]] = {
            name: functools.partial(_burst, side, clients, requests, rates.setdefault(name, []))
            for name, side in sides.items()
        }
        ways["empty Lambda"] = functools.partial(empty, clients, requests)
        jobs = interleave(
            ways,
            rounds=bench.rounds(5),
            told=lambda text, n=clients: bench.told(f"{n} clients: {text}"),  # type: ignore[misc]
        )
        kept = len(jobs.values["platform"])
        submitted = Samples({name: values[-kept:] for name, values in rates.items()})
        many = clients == _MANY
        who = f"{clients} clients" if many else "1 client"
        emulator = jobs.median("empty Lambda")
        yield submitted.result(
            f"submissions/s of {who} / FastAPI + Arq",
            "platform",
            "FastAPI + Arq",
            Goal(1.3, "at least") if many else None,
            show=per_second,
            note=f"an empty Lambda on the emulator: {per_second(emulator)}",
        )
        yield jobs.result(
            f"jobs/s of {who} / FastAPI + Arq",
            "platform",
            "FastAPI + Arq",
            Goal(1.1, "at least") if many else None,
            show=per_second,
        )


def _until_done(bench: Bench, sides: dict[str, _Side]) -> Iterator[Result]:
    samples = interleave(
        {name: functools.partial(_one_by_one, side) for name, side in sides.items()},
        rounds=bench.rounds(5),
        told=lambda text: bench.told(f"submit to done: {text}"),
    )
    yield samples.result(
        "submit to done / FastAPI + Arq", "platform", "FastAPI + Arq", Goal(0.15), show=seconds
    )


def _burst(side: _Side, clients: int, requests: int, rates: list[float]) -> float:
    """Notes submissions a second; answers jobs a second, from the first submit to the last end."""
    with connect(side.database_url) as connection:
        before = connection.run(side.finished)[0][0]
        # The emulator ends functions that others have kept waiting; their start is no throughput.
        _submit(side.url, side.key, clients, _WARMING * clients)
        before += _WARMING * clients
        _wait_for(connection, side, before)
        began = time.perf_counter()
        rates.append(_submit(side.url, side.key, clients, requests))
        made = requests // clients * clients
        _wait_for(connection, side, before + made)
        return float(made / (time.perf_counter() - began))


def _one_by_one(side: _Side) -> float:
    """The median of the time from submit to done, each job on an idle system."""
    with connect(side.database_url) as connection:
        for _ in range(_DONE_JOBS):
            before = connection.run(side.finished)[0][0]
            _submit(side.url, side.key, 1, 1)
            _wait_for(connection, side, before + 1)
        found = connection.run(side.durations, n=_DONE_JOBS)
        return statistics.median(row[0] for row in found)


def _wait_for(connection: Any, side: _Side, wanted: int) -> None:
    deadline = time.monotonic() + 300
    while connection.run(side.finished)[0][0] < wanted:
        if time.monotonic() > deadline:
            raise AssertionError(f"{side.url}: not all jobs were done within 5 minutes")
        time.sleep(0.01)
    if connection.run(side.failed)[0][0]:
        raise AssertionError(f"{side.url}: jobs failed")


def _submit(url: str, key: str, clients: int, requests: int) -> float:
    """Requests a second."""
    given = {"url": url, "key": key, "clients": clients, "requests": requests, "body": _BODY}
    said = run_program(
        [sys.executable, str(Path(__file__).with_name("load.py"))],
        environ={"PATH": os.defpath},
        given=json.dumps(given),
        seconds=300,
    )
    return float(requests // clients * clients / json.loads(said)["seconds"])


def _load_flights(url: str) -> None:
    columns = ", ".join(
        f"{column.name} {_TYPES.get(column.name, 'smallint')}" for column in flights.flights.columns
    )
    names = ", ".join(column.name for column in flights.flights.columns)
    with connect(url) as connection:
        connection.run(f"CREATE TABLE flights ({columns}, PRIMARY KEY (id))")
        connection.run(
            f"INSERT INTO flights ({names}) SELECT g, 2013, g % 12 + 1, g % 28 + 1, 517, 515, 2,"
            " 830, 819, 11, (ARRAY['UA', 'AA', 'B6', 'DL', 'OO'])[g % 50 / 12 + 1], 1545, 'N14228',"
            " 'EWR', 'IAH', 227, 1400, 5, 15, timestamptz '2013-01-01 10:00+00'"
            f" FROM generate_series(1, {_FLIGHTS}) AS g"
        )
        connection.run("ANALYZE flights")


_TYPES = {
    "id": "bigint",
    "flight": "integer",
    "time_hour": "timestamptz",
    **dict.fromkeys(("carrier", "tailnum", "origin", "dest"), "text"),
}


def _lift_limits(target: LocalTarget) -> None:
    """The plan's rate is an offer, not a measure: without this, it would be what is measured."""
    gateway = target.client("apigateway")
    gateway.update_usage_plan(
        usagePlanId=target.outputs["UsagePlanProId"],
        patchOperations=[
            {"op": "replace", "path": "/throttle/rateLimit", "value": "10000"},
            {"op": "replace", "path": "/throttle/burstLimit", "value": "10000"},
        ],
    )


@contextlib.contextmanager
def _peer(target: LocalTarget, bench: Bench) -> Iterator[_Peer]:
    bench.told("starting FastAPI, Arq and Redis")
    emulator = target.state.ministack
    assert emulator is not None
    target.client("s3").create_bucket(Bucket="peer-results")
    with connect(target.state.database_url) as connection:
        connection.run("CREATE DATABASE peer")
    database_url = target.state.database_url.replace("/platform?", "/peer?")
    redis_port, port = free_port(), free_port()
    query = sqltext.select(flights.query(flights.Params.model_validate(_PARAMETERS)))
    environ = {
        **emulator.environ(),
        "PATH": os.defpath,
        "PEER_DATABASE_URL": _asyncpg(database_url),
        "PEER_DATA_DATABASE_URL": _asyncpg(target.state.data_database_url),
        "PEER_REDIS_PORT": str(redis_port),
        "PEER_BUCKET": "peer-results",
        "PEER_QUERY": query,
        "PEER_API_KEY": API_KEY,
    }
    folder = bench.folder / "peer"
    folder.mkdir()
    run_program([str(bench.peers), str(_PEERS / "service.py")], environ=environ)
    server = [str(environment.redis_server()), "--port", str(redis_port), "--bind", "127.0.0.1"]
    uvicorn = ["-m", "uvicorn", "service:app", "--host", "127.0.0.1", "--port", str(port)]
    with contextlib.ExitStack() as stack:
        start = functools.partial(_started, stack, folder, environ)
        redis = start("redis", [*server, "--save", "", "--dir", str(folder)])
        wait_until(
            lambda: "Ready to accept connections" in tail(folder / "redis.log", 50),
            process=redis,
            what="Redis",
            log=folder / "redis.log",
            seconds=30,
        )
        start("arq", [str(bench.peers), "-m", "arq", "service.Worker"])
        api = start("uvicorn", [str(bench.peers), *uvicorn])
        url = f"http://127.0.0.1:{port}"
        wait_until(
            lambda: _answers(f"{url}/openapi.json"),
            process=api,
            what="uvicorn",
            log=folder / "uvicorn.log",
            seconds=60,
        )
        yield _Peer(f"{url}/jobs", database_url)


def _asyncpg(url: str) -> str:
    return url.partition("?")[0].replace("postgresql://", "postgresql+asyncpg://")


def _started(
    stack: contextlib.ExitStack,
    folder: Path,
    environ: dict[str, str],
    name: str,
    command: list[str],
) -> subprocess.Popen[bytes]:
    with (folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(
            command,
            env=environ,
            cwd=_PEERS,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    reference = ProcessRef.of(process.pid)
    stack.callback(process.wait)
    stack.callback(reference.stop, polite=15, patience=10)
    return process


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _empty_lambda(target: LocalTarget) -> Callable[[int, int], float]:
    """A Lambda that does nothing behind a REST API with a key: submissions a second to it."""
    code = io.BytesIO()
    with zipfile.ZipFile(code, "w") as archive:
        archive.writestr(
            "empty.py",
            # It logs a line, as ours do: the emulator waits for one.
            "def handler(event, context):\n    print('called')\n"
            "    return {'statusCode': 202, 'body': '{}'}\n",
        )
    function = target.client("lambda").create_function(
        FunctionName="empty",
        Runtime=f"python3.{sys.version_info.minor}",
        Role="arn:aws:iam::000000000000:role/empty",
        Handler="empty.handler",
        Code={"ZipFile": code.getvalue()},
        MemorySize=1024,
    )
    gateway = target.client("apigateway")
    api = gateway.create_rest_api(name="empty")["id"]
    root = gateway.get_resources(restApiId=api)["items"][0]["id"]
    resource = gateway.create_resource(restApiId=api, parentId=root, pathPart="jobs")["id"]
    method = {"restApiId": api, "resourceId": resource, "httpMethod": "POST"}
    gateway.put_method(**method, authorizationType="NONE", apiKeyRequired=True)
    region = gateway.meta.region_name
    gateway.put_integration(
        **method,
        type="AWS_PROXY",
        integrationHttpMethod="POST",
        uri=f"arn:aws:apigateway:{region}:lambda:path/2015-03-31/functions/"
        f"{function['FunctionArn']}/invocations",
    )
    gateway.create_deployment(restApiId=api, stageName="prod")
    key = gateway.create_api_key(name="empty", enabled=True)
    plan = gateway.create_usage_plan(name="empty", apiStages=[{"apiId": api, "stage": "prod"}])
    gateway.create_usage_plan_key(usagePlanId=plan["id"], keyId=key["id"], keyType="API_KEY")
    emulator = target.state.ministack
    assert emulator is not None
    url = f"{emulator.endpoint_url}/restapis/{api}/prod/_user_request_/jobs"

    def submissions(clients: int, requests: int) -> float:
        _submit(url, key["value"], clients, _WARMING * clients)
        return _submit(url, key["value"], clients, requests)

    return submissions

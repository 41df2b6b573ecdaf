"""A submit: the warm handler in process, against a bare INSERT of the same row plus SendMessage.

The peer is pg8000 and boto3 alone: one INSERT into a table with the same columns and indexes, and
one message to the same queue. A replay is compared with the bare INSERT, after what the handler
costs by itself (the same request with its database and queue taken out) has been taken off.

Commits do not wait for the disk here (`synchronous_commit = off`, for both): a disk's time would be
in both and make the ratio look better.
"""

import contextlib
import dataclasses
import functools
import itertools
import json
import re
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from infra.local.postgres import connect
from jobplatform import database, job_store
from tests.benchmarks import events
from tests.benchmarks.bench import Bench
from tests.benchmarks.measuring import Goal, Result, Samples, interleave

_REQUESTS = 200
_BODY = {"template_name": "delays_by_carrier", "parameters": {"month": 3}}
_COLUMNS = (
    "id, client_id, plan, template_name, template_version, parameters, metadata, format,"
    " compression, status, status_reason, created_at, available_at, max_attempts,"
    " idempotency_key, idempotency_expires_at, request_hash"
)


def run(bench: Bench) -> Iterator[Result]:
    bench.functions  # noqa: B018 - servers are started before
    with bench.superuser("platform") as admin:
        admin.run("ALTER ROLE platform SET synchronous_commit = off")
        admin.run("CREATE TABLE bare_jobs (LIKE jobplatform.jobs INCLUDING ALL)")
        admin.run("ALTER TABLE bare_jobs OWNER TO platform")
    bare = _Bare(bench)
    samples = interleave(
        {
            "handler": functools.partial(_each, _submit, before=functools.partial(_empty, bench)),
            "insert and send": functools.partial(
                _each, bare.insert_and_send, before=functools.partial(_empty, bench)
            ),
            "insert": functools.partial(
                _each, bare.insert, before=functools.partial(_empty, bench)
            ),
            "replay": functools.partial(_each, _replay, before=_replay),
            "handler alone": functools.partial(_alone, bench),
        },
        rounds=bench.rounds(9),
        told=bench.told,
    )
    yield samples.result(
        "submit / INSERT + SendMessage", "handler", "insert and send", Goal(1.5), show=_milliseconds
    )
    rounds = zip(samples.values["replay"], samples.values["handler alone"], strict=True)
    above = Samples(
        {
            "replay above handler": [replay - alone for replay, alone in rounds],
            "insert": samples.values["insert"],
        }
    )
    yield above.result(
        "replay above the handler's own / INSERT",
        "replay above handler",
        "insert",
        Goal(3.0),
        show=_milliseconds,
        note=f"handler alone {_milliseconds(samples.median('handler alone'))}",
    )
    yield from _statements(bench)


def _each(one: Callable[[], None], *, before: Callable[[], None], times: int = _REQUESTS) -> float:
    """Seconds a request."""
    before()
    began = time.perf_counter()
    for _ in range(times):
        one()
    return (time.perf_counter() - began) / times


def _handle(event: dict[str, Any]) -> None:
    from functions.api import handler

    answer = handler.lambda_handler(event, events.Context())  # type: ignore[arg-type]
    if answer["statusCode"] != 202:
        raise AssertionError(f"the API answered {answer}")


def _submit() -> None:
    _handle(events.request("POST", "/jobs", _BODY, idempotency_key=str(uuid.uuid4())))


def _replay() -> None:
    _handle(events.request("POST", "/jobs", _BODY, idempotency_key="replayed"))


def _empty(bench: Bench) -> None:
    """The number of jobs that wait is part of a submit's cost, so each way starts with none."""
    with connect(str(bench.platform.url)) as connection:
        connection.run("DELETE FROM jobplatform.jobs")
        connection.run("DELETE FROM bare_jobs")
        connection.run("VACUUM jobplatform.jobs, bare_jobs")


class _Bare:
    """What anybody would write first: pg8000 and boto3, nothing around them."""

    def __init__(self, bench: Bench) -> None:
        self._connection = database.connect(bench.platform, application_name="bare")
        self._sqs = bench.aws("sqs")
        self._queue_url = bench.queue_url
        self._client_id = bench.client_id
        self._parameters = json.dumps(_BODY["parameters"])

    def insert(self) -> uuid.UUID:
        job_id = uuid.uuid4()
        self._connection.run(
            f"INSERT INTO bare_jobs ({_COLUMNS}) VALUES (:id, :client, 'pro', 'delays_by_carrier',"
            " '1', :parameters, '{}', 'csv', 'none', 'queued', 'submitted', now(), now(), 4,"
            " :key, now() + interval '1 day', :hash)",
            id=job_id,
            client=self._client_id,
            parameters=self._parameters,
            key=str(job_id),
            hash="0" * 64,
        )
        return job_id

    def insert_and_send(self) -> None:
        job_id = self.insert()
        self._sqs.send_message(QueueUrl=self._queue_url, MessageBody=str(job_id))


def _alone(bench: Bench) -> float:
    """The same request as the replay, with the database and the queue taken out."""
    from functions.api import resources

    _replay()
    with database.transaction(resources.get().engine) as conn:
        found = job_store.find_by_key(conn, bench.client_id, "replayed")
    assert found is not None

    @contextlib.contextmanager
    def nothing(*arguments: Any, **named: Any) -> Iterator[None]:
        yield

    def insert(conn: Any, new: Any, **arguments: Any) -> Any:
        return dataclasses.replace(found, request_hash=arguments["request_hash"])

    with (
        mock.patch.object(database, "client_transaction", nothing),
        mock.patch.object(job_store, "insert", insert),
        mock.patch.object(resources.get().queue, "ring"),
    ):
        return _each(_replay, before=_replay)


def _statements(bench: Bench) -> Iterator[Result]:
    """How many statements the server was sent, from its own log."""
    log = Path(bench.server.home) / "postgres.log"
    with bench.superuser("platform") as admin:
        admin.run("ALTER SYSTEM SET log_statement = 'all'")
        admin.run("SELECT pg_reload_conf()")
    _submit_until_logged(log)
    _replay()
    counted = {}
    for name, work in (("submit", _submit), ("replay", _replay)):
        before = log.stat().st_size
        work()
        counted[name] = _logged(log, before)
    with bench.superuser("platform") as admin:
        admin.run("ALTER SYSTEM RESET log_statement")
        admin.run("SELECT pg_reload_conf()")
    for name, found in counted.items():
        yield Result(
            name=f"statements of a {name}",
            ratio=float(len(found)),
            goal=None,
            spread=(len(found), len(found)),
            ours=", ".join(found),
            theirs="INSERT",
        )


def _submit_until_logged(log: Path) -> None:
    """A session reads a changed setting before its next statement, but only once told of it."""
    for _ in itertools.repeat(None, 100):
        before = log.stat().st_size
        _submit()
        if _logged(log, before):
            return
    raise AssertionError("the server does not log statements")


def _logged(log: Path, start: int) -> list[str]:
    """The first word of each statement since a position in the log, in order."""
    with log.open() as file:
        file.seek(start)
        lines = file.read().splitlines()
    found = []
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if logged := re.search(r"LOG:  (?:statement|execute [^:]+): (.*)", line):
            # A statement that begins with a line's end goes on in the next line.
            words = (logged[1] or following).split(maxsplit=1)
            found.append(words[0].upper())
    return found


def _milliseconds(value: float) -> str:
    return f"{value * 1e3:.2f} ms"

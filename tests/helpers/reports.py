"""Templates that only tests need, and a look at what an export does in the adopter's database."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from infra.local import postgres
from jobplatform import jobs, settings, templating
from jobplatform.usecases import run_job

RAISE = """
CREATE OR REPLACE FUNCTION raise_at(n bigint, at bigint, state text) RETURNS bigint
LANGUAGE plpgsql STABLE AS $$
BEGIN
    IF n = at THEN
        RAISE EXCEPTION 'secret cause on host db-7' USING ERRCODE = state;
    END IF;
    RETURN n;
END $$
"""


class Params(templating.Params):
    rows: int = 1
    seconds: float = 0.0
    raise_at: int = 0
    state: str = "XX000"
    sql: str = ""


def slow(params: Params) -> sa.Select[Any]:
    """Rows that take their time, one by one."""
    number = sa.func.generate_series(1, params.rows).column_valued("n")
    pause = sa.case((sa.func.pg_sleep(params.seconds).is_(None), 0), else_=1)
    return sa.select(number, pause.label("slept"))


def numbers(params: Params) -> sa.Select[Any]:
    """Wide rows, one of which may raise an error."""
    number = sa.func.generate_series(1, params.rows).column_valued("n")
    return sa.select(
        sa.func.raise_at(number, params.raise_at, params.state).label("n"),
        sa.func.repeat("x", 100).label("padding"),
    )


def anything(params: Params) -> sa.Select[Any]:
    return sa.select(sa.text(params.sql))


def python_rows(params: Params, read: Any) -> Iterator[tuple[int, str]]:
    for number in range(params.rows):
        yield number, "x" * 100


TEMPLATES = {
    "slow": templating.Template(params=Params, query=slow, name="slow"),
    "numbers": templating.Template(params=Params, query=numbers, name="numbers"),
    "anything": templating.Template(params=Params, query=anything, name="anything"),
    "python_rows": templating.Template(
        params=Params,
        rows=python_rows,
        columns=(templating.Column("n", "integer"), templating.Column("padding", "text")),
        name="python_rows",
    ),
}


def install(
    monkeypatch: pytest.MonkeyPatch, templates: dict[str, templating.Template] = TEMPLATES
) -> None:
    """Adds templates to the catalogue, before those that are in files."""
    known = templating.get
    monkeypatch.setattr(templating, "get", lambda name: templates.get(name) or known(name))


def template(
    name: str, query: Callable[[Any], sa.Select[Any]], **changes: Any
) -> templating.Template:
    values: dict[str, Any] = {"params": Params, "query": query, "name": name}
    return templating.Template(**{**values, **changes})


class Backends:
    """The sessions of exports, as the server sees them."""

    def __init__(self, data: settings.DataDatabaseSettings) -> None:
        assert data.url is not None
        self._connection = postgres.connect(data.url)

    def close(self) -> None:
        self._connection.close()

    def run(self, sql: str) -> Any:
        return self._connection.run(sql)

    def pids(self, query: str = "") -> list[int]:
        """Sessions of exports; with `query` those that are executing such a one."""
        found = self._connection.run(
            "SELECT pid FROM pg_stat_activity WHERE application_name = 'jobplatform-export'"
            " AND datname = current_database()"
            " AND (:query = '' OR state = 'active' AND strpos(query, :query) > 0)",
            query=query,
        )
        return [pid for (pid,) in found]

    def terminate(self, pids: list[int]) -> None:
        self._connection.run(
            "SELECT pg_terminate_backend(p) FROM unnest(:pids::int[]) p", pids=pids
        )


class Running:
    """A worker that runs one job in a thread of its own."""

    def __init__(self, worker: run_job.Worker, seconds_left: Callable[[], float] = lambda: 600.0):
        self._error: BaseException | None = None
        self.job: jobs.Job | None = None
        self._thread = threading.Thread(target=self._run, args=(worker, seconds_left))
        self._thread.start()

    def _run(self, worker: run_job.Worker, seconds_left: Callable[[], float]) -> None:
        try:
            self.job = run_job.run_job(worker, seconds_left=seconds_left)
        except BaseException as error:
            self._error = error

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def join(self, seconds: float = 30.0) -> None:
        """Waits for the worker's end and raises what it raised."""
        self._thread.join(seconds)
        assert not self._thread.is_alive(), f"the worker did not end within {seconds} s"
        if self._error is not None:
            raise self._error

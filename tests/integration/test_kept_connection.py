"""The connection that goes from one small export to the next."""

import datetime as dt
import time
import uuid
from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from jobplatform import database, errors, export, settings, templating
from jobplatform.jobs import ResultFormat
from jobplatform.usecases import run_job
from tests.helpers import platform, reports, store

_TIMEOUT = dt.timedelta(seconds=60)


@pytest.fixture
def kept() -> Iterator[export.Kept]:
    made = export.Kept()
    yield made
    made.close()


def session(
    address: settings.DataDatabaseSettings, kept: export.Kept, timeout: dt.timedelta = _TIMEOUT
) -> export.Session:
    return export.Session(address, statement_timeout=timeout, kept=kept)


def exported(
    address: settings.DataDatabaseSettings, kept: export.Kept, statement: sa.Select[tuple[object]]
) -> int:
    """One export; answers the server's process that did it."""
    template = templating.Template(params=reports.Params, query=lambda params: statement, name="x")
    with export.Export(
        address,
        template,
        reports.Params(),
        format=ResultFormat.CSV,
        statement_timeout=_TIMEOUT,
        kept=kept,
    ) as running:
        running.prepare()
        running.run(lambda *_: None)
        return running._sessions[0].pid


@pytest.mark.usefixtures("templates")
def test_jobs_of_one_doorbell_share_a_connection_that_is_closed_after_them(
    worker: run_job.Worker,
    client_id: uuid.UUID,
    backends: reports.Backends,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = [platform.submit(worker, client_id, "numbers", {"rows": n}) for n in (10, 20, 30)]
    connects: list[object] = []
    connect = export._connect

    def counted(address: object) -> object:
        connects.append(address)
        return connect(address)

    monkeypatch.setattr(export, "_connect", counted)

    done = run_job.drain(worker, bell=made[0].id, seconds_left=lambda: 60.0, clock=time.monotonic)

    assert done == 3
    assert len(connects) == 1
    rows = [platform.read(worker.bucket, platform.get(worker, job)).count(b"\n") for job in made]
    assert rows == [11, 21, 31]
    store.until(lambda: not backends.pids(), what="no session is left")


def test_nothing_of_one_export_is_seen_by_the_next(
    plain_data: settings.DataDatabaseSettings, kept: export.Kept
) -> None:
    first = session(plain_data, kept, dt.timedelta(seconds=7))
    first.run("SELECT set_config('work_mem', '1MB', false), pg_advisory_lock(7)")
    first.run("DECLARE left_open CURSOR FOR SELECT 1")
    first.let_go(kept)

    with session(plain_data, kept) as second:
        shown = second.run(
            "SELECT current_setting('work_mem'), current_setting('statement_timeout'),"
            " (SELECT count(*) FROM pg_cursors WHERE name = 'left_open'),"
            " (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()"
            " AND objid = 7)"
        )[0]

    assert second.pid == first.pid
    assert shown == ["4MB", "1min", 0, 0]
    assert second.as_of > first.as_of


def test_a_kept_connection_that_has_ended_is_replaced(
    plain_data: settings.DataDatabaseSettings, kept: export.Kept, backends: reports.Backends
) -> None:
    pid = exported(plain_data, kept, sa.select(sa.literal(1)))
    backends.terminate([pid])
    store.until(lambda: pid not in backends.pids(), what="the session has ended")

    assert exported(plain_data, kept, sa.select(sa.literal(2))) != pid


def test_an_export_that_failed_leaves_no_connection(
    plain_data: settings.DataDatabaseSettings, kept: export.Kept, backends: reports.Backends
) -> None:
    with pytest.raises(database.DriverError):
        exported(plain_data, kept, sa.select(sa.literal(1) / sa.func.length("")))

    assert kept.take() is None
    store.until(lambda: not backends.pids(), what="no session is left")


def test_a_cancel_that_comes_late_does_not_meet_the_next_export(
    plain_data: settings.DataDatabaseSettings, kept: export.Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = session(plain_data, kept)
    first.let_go(kept)
    with session(plain_data, kept) as second:
        monkeypatch.setattr(database, "connect", lambda *_, **__: pytest.fail("it cancels"))
        first.cancel()

        assert second.pid == first.pid
        assert second.run("SELECT 1") == [[1]]


def test_a_session_that_was_cancelled_is_not_kept(
    plain_data: settings.DataDatabaseSettings, kept: export.Kept
) -> None:
    cancelled = session(plain_data, kept)
    cancelled.cancel()

    cancelled.let_go(kept)

    assert kept.take() is None
    with pytest.raises(errors.ExecutionError):
        cancelled.run("SELECT 1")

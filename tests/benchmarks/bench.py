"""What the benchmarks run on: PostgreSQL with generated data, the AWS emulator, other programs.

Each part is started when the first benchmark asks for it and stopped when all are done.
"""

import contextlib
import functools
import os
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import boto3

from infra.local import paths
from infra.local.ministack import REGION, MiniStack, RunningMiniStack
from infra.local.postgres import LocalPostgres, RunningPostgres, connect
from jobplatform import client_store, database, jobs, migrations, observability, sqltext
from jobplatform.settings import DatabaseSettings, DataDatabaseSettings
from tests.benchmarks import data, environment

BUCKET = "benchmark-results"
API_KEY = "benchmark-key"
PLAN = "pro"
PSQL = paths.POSTGRES_INSTALLATION / "bin" / "psql"


class Bench:
    """Given to each benchmark. `told` hears what is being done; `rows` is the size of the data."""

    def __init__(
        self,
        folder: Path,
        *,
        rows: int,
        rounds: int | None,
        told: Callable[[str], None],
    ) -> None:
        self.folder = folder
        self.rows = rows
        self._rounds = rounds
        self.told = told
        self._open = contextlib.ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.told("stopping the servers")
        self._open.close()

    def rounds(self, usual: int) -> int:
        """How often to repeat: as the person said, or as usual for this benchmark."""
        return self._rounds or usual

    @functools.cached_property
    def server(self) -> RunningPostgres:
        """PostgreSQL with empty databases `platform` and `data`."""
        self.told("starting PostgreSQL")
        postgres = LocalPostgres(self.folder)
        self._open.callback(postgres.stop)
        return postgres.start()

    @functools.cached_property
    def data(self) -> DataDatabaseSettings:
        """The adopter's database: the tables `flights` and `wide`."""
        settings = DataDatabaseSettings(url=self.server.url("data"))
        data.load(self.server.url("data"), rows=self.rows, told=self.told)
        return settings

    @functools.cached_property
    def platform(self) -> DatabaseSettings:
        """The platform's database at head, with one client whose key is `API_KEY`."""
        settings = DatabaseSettings(url=self.server.url())
        self.told("migrating the platform's database")
        engine = database.create_engine(settings, application_name="benchmarks")
        migrations.upgrade(engine)
        with engine.begin() as conn:
            client_store.create(conn, client_id=self.client_id, name="benchmarks")
            client_store.add_key(
                conn,
                client_id=self.client_id,
                key_sha256=client_store.key_hash(API_KEY),
                api_key_id="benchmark",
                plan=PLAN,
            )
        engine.dispose()
        return settings

    @functools.cached_property
    def client_id(self) -> uuid.UUID:
        return jobs.new_id()

    @functools.cached_property
    def emulator(self) -> RunningMiniStack:
        """MiniStack with a bucket."""
        self.told("starting the AWS emulator")
        ministack = MiniStack(self.folder)
        self._open.callback(ministack.stop)
        running = ministack.launch()
        ministack.wait()
        client_of(running, "s3").create_bucket(Bucket=BUCKET)
        return running

    @functools.cached_property
    def queue_url(self) -> str:
        queue = self.aws("sqs").create_queue(QueueName="benchmark-jobs")
        return str(queue["QueueUrl"])

    def aws(self, service: str) -> Any:
        """A boto3 client of the emulator."""
        return client_of(self.emulator, service)

    @functools.cached_property
    def functions(self) -> None:
        """Sets what the handlers find in their environment on Lambda; call before the first one."""
        os.environ.update(
            {
                **self.emulator.environ(),
                "DATABASE_URL": str(self.platform.url),
                "DATA_DATABASE_URL": str(self.data.url),
                "QUEUE_URL": self.queue_url,
                "RESULTS_BUCKET": BUCKET,
                "API_CURSOR_SECRET": "benchmark",
            }
        )

    def copied(self, query: str, sink: str) -> list[str]:
        """A shell's words for psql's COPY of a query to a file, or to `pstdout`."""
        one_line = " ".join(query.split())
        target = sink if sink == "pstdout" else f"'{sink}'"
        copy = f"\\copy ({one_line}) to {target} with (format csv, header)"
        name = str(self.data.url).partition("?")[0].rpartition("/")[2]
        return [str(PSQL), "--no-psqlrc", "--quiet", "--command", copy, name]

    def psql_environ(self) -> dict[str, str]:
        """Where psql finds the server, and the session settings that the platform uses."""
        settings = [
            f"-c {name}={value.replace(' ', chr(92) + ' ')}"
            for name, value in sqltext.SESSION.items()
            if name != "client_encoding"
        ]
        return {
            "PATH": os.defpath,
            "LC_ALL": "C.UTF-8",
            "HOME": str(self.folder),
            "PGHOST": "127.0.0.1",
            "PGPORT": str(self.server.port),
            "PGUSER": "platform",
            "PGPASSWORD": self.server.password,
            "PGSSLMODE": "disable",
            "PGCLIENTENCODING": "UTF8",
            "PGOPTIONS": " ".join(settings),
        }

    @functools.cached_property
    def peers(self) -> Path:
        """The Python of the environment with what is compared with."""
        self.told("installing what is compared with (once)")
        environment.ensure()
        return environment.PYTHON

    def superuser(self, database_name: str) -> Any:
        """A connection that may change the server's settings."""
        url = self.server.url(database_name).replace("//platform:", "//postgres:")
        return connect(url)


def discard_output() -> None:
    """What the functions print is their log. It is made, as on Lambda, and goes nowhere."""
    sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - for as long as the process lives
    observability.logger.registered_handler.setStream(sys.stdout)  # type: ignore[attr-defined]


def client_of(emulator: RunningMiniStack, service: str) -> Any:
    session = boto3.Session(
        aws_access_key_id="test", aws_secret_access_key="test", region_name=REGION
    )
    return session.client(service, endpoint_url=emulator.endpoint_url)  # type: ignore[call-overload]


def run(
    command: list[str], *, environ: dict[str, str], given: str = "", seconds: float = 1800
) -> bytes:
    """Runs a program to its end and answers what it printed; raises when it failed."""
    done = subprocess.run(
        command,
        env=environ,
        input=given.encode(),
        capture_output=True,
        timeout=seconds,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{command[0]} failed: {done.stderr.decode(errors='replace')[-2000:]}")
    return done.stdout

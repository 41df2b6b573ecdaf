"""The embedded target: servers started, stacks deployed, sample data loaded, keys made.

`LocalTarget` does all of it, in a folder of its own, so that several can run at once. Whatever goes
wrong on the way up, Ctrl-C included, nothing of it stays.
"""

import contextlib
import dataclasses
import fcntl
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import boto3

from infra.local import flights
from infra.local.deployment import SERVICE_STACK, Deployment, resources_done
from infra.local.errors import LocalError
from infra.local.ministack import REGION, MiniStack, RunningMiniStack
from infra.local.postgres import LocalPostgres, connect
from infra.local.processes import uninterrupted
from infra.local.state import State
from jobclient.admin import Admin
from jobplatform.plans import PLANS

CLIENT = "demo"


class Progress(Protocol):
    """Told what is being done, for a person who waits."""

    def step(self, name: str) -> contextlib.AbstractContextManager[Any]: ...

    def detail(self, text: str) -> None: ...


class Silent:
    """Progress that nobody watches."""

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        yield

    def detail(self, text: str) -> None:
        pass


class LocalTarget:
    """One instance of the embedded target; as a context manager it runs for the `with` block.

    `settings` are variables of the functions, such as `{"JOBS_LEASE": "PT5S"}`. `database_url` and
    `data_database_url` name a PostgreSQL of one's own; without the first one is started. With
    `durable=False` that one is fast and not safe against power loss. Without `sample_data` the data
    database is empty.
    """

    def __init__(
        self,
        state_dir: Path,
        *,
        settings: Mapping[str, str] | None = None,
        database_url: str | None = None,
        data_database_url: str | None = None,
        durable: bool = True,
        sample_data: bool = True,
        progress: Progress | None = None,
    ) -> None:
        self.state_dir = state_dir.resolve()
        self._settings = dict(settings or {})
        self._database_url = database_url
        self._data_database_url = data_database_url
        self._durable = durable
        self._sample_data = sample_data
        self._progress = progress or Silent()
        self._state: State | None = None
        self._servers: list[MiniStack | LocalPostgres] = []

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
    def state(self) -> State:
        """What runs; raises `LocalError` before `start`."""
        state = self._state or State.load(self.state_dir)
        if state is None:
            raise LocalError(f"Nothing was started in {self.state_dir}.")
        return state

    @property
    def api_url(self) -> str:
        return self.state.api_url

    @property
    def keys(self) -> Mapping[str, str]:
        """An API key of the client `demo` for each plan."""
        return self.state.keys

    @property
    def outputs(self) -> Mapping[str, str]:
        return self.state.outputs

    def session(self) -> boto3.Session:
        """A session for the emulator's credentials; clients take `endpoint_url` beside it."""
        return boto3.Session(
            aws_access_key_id="test", aws_secret_access_key="test", region_name=REGION
        )

    def client(self, service: str) -> Any:
        """A boto3 client of a service of the emulator."""
        return self.session().client(service, endpoint_url=self._emulator.endpoint_url)  # type: ignore[call-overload]

    def admin(self) -> Admin:
        return Admin(
            SERVICE_STACK, session=self.session(), endpoint_url=self._emulator.endpoint_url
        )

    @property
    def _emulator(self) -> RunningMiniStack:
        emulator = self.state.ministack
        assert emulator is not None
        return emulator

    def start(self) -> State:
        """Starts and deploys; on failure stops what it started.

        Remains of an instance that died are removed first.
        """
        with self._alone():
            remains = State.load(self.state_dir)
            if remains is not None:
                if remains.is_running:
                    raise LocalError(f"It runs already, at {remains.api_url} ({self.state_dir}).")
                remains.stop()
            _make_empty(self.state_dir)
            try:
                self._note(State(state_dir=self.state_dir))
                self._start_servers()
                self._deploy()
                self._make_client()
            except BaseException:
                with self._progress.step("Stop what was started"):
                    self._stop()
                raise
            return self.state

    def stop(self) -> None:
        """Ends every process of it and removes its folder; does nothing when there is nothing."""
        with self._alone():
            self._stop()

    def _stop(self) -> None:
        state = self._state or State.load(self.state_dir)
        self._state = None
        if state is not None:
            state.stop()
        for server in self._servers:
            server.stop()
        self._servers.clear()

    def _start_servers(self) -> None:
        ministack = MiniStack(self.state_dir)
        self._servers.append(ministack)
        with self._progress.step("Start the AWS emulator and PostgreSQL"):
            with uninterrupted():
                self._note(ministack=ministack.launch())
            if self._database_url is None:
                postgres = LocalPostgres(self.state_dir, durable=self._durable)
                self._servers.append(postgres)
                with uninterrupted():
                    self._note(postgres=postgres.launch())
                postgres.wait()
                self._note(
                    database_url=postgres.url(),
                    data_database_url=self._data_database_url or postgres.url("data"),
                )
            else:
                connect(self._database_url).close()
                self._note(
                    database_url=self._database_url,
                    data_database_url=self._data_database_url or self._database_url,
                )
            ministack.wait()

    def _deploy(self) -> None:
        deployment = Deployment(
            self.state_dir,
            self._emulator,
            context={
                "target": "embedded",
                "database_url": self.state.database_url,
                "data_database_url": self.state.data_database_url,
                **({"settings": json.dumps(self._settings)} if self._settings else {}),
            },
        )
        # These three do not wait for each other; each is slow enough to be worth it.
        with deployment.bootstrap() as bootstrap, deployment.synth() as synth:
            if self._sample_data:
                with self._progress.step("Load the flights of 2013 from New York City"):
                    flights.load(self.state.data_database_url)
            with self._progress.step("Build the layers and the CloudFormation templates"):
                synth.wait(seconds=600)
                bootstrap.wait(seconds=120)
        with (
            self._progress.step("Deploy the stacks (cdk deploy), with the database migrations"),
            deployment.deploy() as deploy,
        ):
            try:
                deploy.wait(seconds=600, watch=resources_done(self._progress.detail))
            except LocalError as error:
                raise LocalError(f"{error}\n{_errors_in(self.state_dir)}") from None
        self._note(stack=SERVICE_STACK, outputs=deployment.outputs())

    def _make_client(self) -> None:
        with self._progress.step("Create a client with a key on each plan"):
            admin = self.admin()
            first, *others = PLANS
            new = admin.create_client(_client_name(self._database_url), first)
            keys = {first: new.api_key}
            for plan in others:
                keys[plan] = admin.add_key(new.client_id, plan).api_key
            self._note(keys=keys)

    def _note(self, state: State | None = None, **changes: Any) -> None:
        """Writes down at once what was started, so that `make down` finds it whatever comes."""
        self._state = dataclasses.replace(state or self.state, **changes)
        self._state.save()

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """One command at a time in one folder."""
        self.state_dir.parent.mkdir(parents=True, exist_ok=True)
        lock_file = self.state_dir.parent / f".{self.state_dir.name}.lock"
        with lock_file.open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise LocalError(
                    f"Another command is starting or stopping the target in {self.state_dir}."
                ) from None
            yield


def _client_name(own_database_url: str | None) -> str:
    # In a person's own database the client of an earlier run, and its jobs, may still be there.
    return CLIENT if own_database_url is None else f"{CLIENT}-{time.strftime('%Y%m%d-%H%M%S')}"


def _make_empty(folder: Path) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise LocalError(
            f"{folder} is not empty, and what is in it was not made here. Empty it, or name "
            "another folder in JOBPLATFORM_LOCAL_DIR."
        )


def _errors_in(state_dir: Path) -> str:
    """What the functions said, which the emulator keeps in its log."""
    log = state_dir / "ministack.log"
    lines = [
        line
        for line in log.read_text(errors="replace").splitlines()
        if "ERROR" in line or "Error" in line or "Traceback" in line
    ]
    return "\n".join(
        ["Errors in the emulator's log:", *(f"  {line[:500]}" for line in lines[-15:])]
    )

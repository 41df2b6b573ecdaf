"""Fixtures of the client's tests: a scripted server, time that only the client's waits move."""

import dataclasses
import functools
import io
from collections.abc import Callable, Iterator

import pytest

from jobclient import Client, Retry, cli, commands
from tests.unit.jobclient.scripted_server import ScriptedServer


@dataclasses.dataclass
class FakeTime:
    """A clock that `sleep` moves."""

    now: float = 1000.0
    slept: list[float] = dataclasses.field(default_factory=list)

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    def clock(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def clean_environ(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    """No setting of the person who runs the tests."""
    for name in ("JOBS_API_URL", "JOBS_API_KEY", "JOBS_STACK", "AWS_PROFILE", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    for name in (
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
        "http_proxy",
        "https_proxy",
        "all_proxy",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "no-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "no-credentials"))
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("NO_COLOR", "1")


@pytest.fixture
def fake_time() -> FakeTime:
    return FakeTime()


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer() as running:
        yield running


@pytest.fixture
def make_client(server: ScriptedServer, fake_time: FakeTime) -> Iterator[Callable[..., Client]]:
    clients: list[Client] = []

    def make(**changes: object) -> Client:
        arguments: dict = {
            "base_url": f"{server.url}/prod",
            "api_key": "key-1",
            "sleep": fake_time.sleep,
            "clock": fake_time.clock,
            "retry": Retry(attempts=4, draw=lambda: 1.0),
            **changes,
        }
        client = Client(arguments.pop("base_url"), arguments.pop("api_key"), **arguments)
        clients.append(client)
        return client

    yield make
    for client in clients:
        client.close()


@pytest.fixture
def client(make_client: Callable[..., Client]) -> Client:
    return make_client()


@dataclasses.dataclass(frozen=True)
class Run:
    """What a command line did."""

    code: int
    out: str
    err: str


@pytest.fixture
def jobctl(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    server: ScriptedServer,
    fake_time: FakeTime,
) -> Callable[..., Run]:
    """Runs a `jobctl` command line against the scripted server, without waiting."""
    monkeypatch.setenv("JOBS_API_URL", f"{server.url}/prod")
    monkeypatch.setenv("JOBS_API_KEY", "key-1")
    monkeypatch.setattr(
        commands.client,
        "Client",
        functools.partial(Client, sleep=fake_time.sleep, clock=fake_time.clock),
    )

    def run(*arguments: object, stdin: str = "") -> Run:
        monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
        with pytest.raises(SystemExit) as ended:
            cli.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return Run(ended.value.code, captured.out, captured.err)

    return run

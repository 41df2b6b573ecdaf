"""One real deployment on the embedded target for all end-to-end tests of a run."""

import contextlib
from collections.abc import Iterator

import pytest

from infra.local.up import LocalTarget
from jobclient import Client
from tests.helpers import orphans


@pytest.fixture(scope="session")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalTarget]:
    state = tmp_path_factory.mktemp("embedded") / "state"
    with LocalTarget(state, durable=False) as running, _stopped_with_us(running):
        yield running


def _stopped_with_us(target: LocalTarget) -> contextlib.AbstractContextManager[None]:
    state = target.state
    servers = [server for server in (state.ministack, state.postgres) if server is not None]
    return orphans.stopped_with_us(*servers)


@pytest.fixture
def client(target: LocalTarget) -> Iterator[Client]:
    with Client(target.api_url, target.keys["pro"]) as made:
        yield made

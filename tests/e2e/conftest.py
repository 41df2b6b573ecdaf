"""One real deployment on the embedded target for all end-to-end tests of a run."""

from collections.abc import Iterator

import pytest

from infra.local.up import LocalTarget
from jobclient import Client
from tests.helpers import orphans


@pytest.fixture(scope="session")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalTarget]:
    state = tmp_path_factory.mktemp("embedded") / "state"
    with (
        LocalTarget(state, durable=False) as running,
        orphans.stopped_with_us(running.state),
    ):
        yield running


@pytest.fixture
def client(target: LocalTarget) -> Iterator[Client]:
    with Client(target.api_url, target.keys["pro"]) as made:
        yield made

"""One real deployment on the embedded target for all end-to-end tests of a run."""

from collections.abc import Iterator

import pytest

from infra.local.up import LocalTarget
from jobclient import Client


@pytest.fixture(scope="session")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalTarget]:
    with LocalTarget(tmp_path_factory.mktemp("embedded") / "state", durable=False) as running:
        yield running


@pytest.fixture
def client(target: LocalTarget) -> Iterator[Client]:
    with Client(target.api_url, target.keys["pro"]) as made:
        yield made

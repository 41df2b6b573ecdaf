"""The compose file fits the target `localstack`, and no other machine reaches its services."""

import pathlib
import re
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from infra.bundling import ROOT
from infra.targets import LOCALSTACK

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "localstack-compose.yml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]


@pytest.mark.parametrize("name", SERVICES)
def test_images_are_pinned_to_a_version(name: str) -> None:
    image = SERVICES[name]["image"]

    assert re.fullmatch(r"[\w./-]+:\d+\.\d+(\.\d+)?(@sha256:[0-9a-f]{64})?", image)


@pytest.mark.parametrize("name", SERVICES)
def test_ports_are_open_to_this_machine_only(name: str) -> None:
    assert all(port.startswith("127.0.0.1:") for port in SERVICES[name]["ports"])


@pytest.mark.parametrize("name", SERVICES)
def test_services_say_when_they_are_ready(name: str) -> None:
    assert SERVICES[name]["healthcheck"]["test"]


def test_functions_join_the_network_of_the_database() -> None:
    network = SERVICES["aws"]["environment"]["LAMBDA_DOCKER_NETWORK"]

    assert COMPOSE["networks"]["platform"]["name"] == network
    assert SERVICES["postgres"]["networks"] == ["platform"]


def test_database_url_of_the_target_is_that_of_the_service() -> None:
    url = urlsplit(LOCALSTACK.database_url or "")
    postgres = SERVICES["postgres"]["environment"]

    assert (url.hostname, url.port) == ("postgres", 5432)
    assert url.username == postgres["POSTGRES_USER"]
    assert url.password == postgres["POSTGRES_PASSWORD"]
    assert url.path.removeprefix("/") == postgres["POSTGRES_DB"]


def test_downloads_go_to_the_port_that_is_published() -> None:
    port = urlsplit(LOCALSTACK.public_s3_endpoint or "").port

    assert f"127.0.0.1:{port}:{port}" in SERVICES["aws"]["ports"]


def test_emulator_can_start_the_functions_containers() -> None:
    socket = pathlib.PurePosixPath("/var/run/docker.sock")

    assert f"{socket}:{socket}" in SERVICES["aws"]["volumes"]

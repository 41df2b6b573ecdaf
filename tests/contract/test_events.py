"""The events in events/ are whole, used, and there for every function."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.events import FOLDER, load_event

ROOT = FOLDER.parent
NAMES = sorted(path.stem for path in FOLDER.iterdir())
FUNCTIONS = sorted(path.parent.name for path in (ROOT / "functions").glob("*/handler.py"))


def of(function: str) -> list[str]:
    return [name for name in NAMES if name.startswith(f"{function}_")]


def test_folder_holds_events_of_functions_and_nothing_else() -> None:
    assert {path.suffix for path in FOLDER.iterdir()} == {".json"}
    assert sorted(name for function in FUNCTIONS for name in of(function)) == NAMES


@pytest.mark.parametrize("function", FUNCTIONS)
def test_every_function_has_an_event(function: str) -> None:
    assert of(function)


@pytest.mark.parametrize("name", NAMES)
def test_every_event_is_used_by_a_test(name: str) -> None:
    this = Path(__file__).name
    texts = [path.read_text() for path in (ROOT / "tests").rglob("test_*.py") if path.name != this]

    assert any(f'"{name}"' in text for text in texts)


@pytest.mark.parametrize("name", NAMES)
def test_every_event_is_json_for_people_without_anything_real(name: str) -> None:
    text = (FOLDER / f"{name}.json").read_text()

    assert json.dumps(json.loads(text), indent=2, ensure_ascii=False) + "\n" == text
    assert set(re.findall(r"\b[0-9]{12}\b", text)) <= {"123456789012"}
    addresses = re.findall(r"\b[0-9]+\.[0-9]+\.[0-9]+\.[0-9]+\b", text)
    # https://datatracker.ietf.org/doc/html/rfc5737
    assert all(
        address.startswith(("203.0.113.", "192.0.2."))
        for address in addresses
        if not address.endswith(".0")
    ), addresses


@pytest.mark.parametrize("name", of("api"))
def test_events_of_the_api_are_whole(name: str) -> None:
    """https://docs.aws.amazon.com/lambda/latest/dg/services-apigateway.html"""
    event = load_event(name)
    context = event["requestContext"]

    assert set(event) == {
        "resource",
        "path",
        "httpMethod",
        "headers",
        "multiValueHeaders",
        "queryStringParameters",
        "multiValueQueryStringParameters",
        "pathParameters",
        "stageVariables",
        "requestContext",
        "body",
        "isBase64Encoded",
    }
    assert event["multiValueHeaders"] == {name: [value] for name, value in event["headers"].items()}
    assert context["path"] == f"/{context['stage']}{event['path']}"
    assert context["httpMethod"] == event["httpMethod"]
    assert context["resourcePath"] == event["resource"]
    assert context["domainName"] == event["headers"]["Host"]
    identity: dict[str, Any] = context["identity"]
    assert identity["userAgent"] == event["headers"]["User-Agent"]
    assert identity.get("apiKey") == event["headers"].get("x-api-key")
    assert ("apiKeyId" in identity) == ("x-api-key" in event["headers"])


@pytest.mark.parametrize("name", of("worker"))
def test_events_of_the_worker_are_whole(name: str) -> None:
    import hashlib

    for record in load_event(name)["Records"]:
        assert record["eventSource"] == "aws:sqs"
        assert record["md5OfBody"] == hashlib.md5(record["body"].encode()).hexdigest()
        assert "ApproximateReceiveCount" in record["attributes"]


def test_changes_are_merged_into_an_event_and_not_into_the_file() -> None:
    changed = load_event("api_submit_job", headers={"x-api-key": "other"}, body="{}")

    assert changed["headers"] == {
        **load_event("api_submit_job")["headers"],
        "x-api-key": "other",
    }
    assert changed["body"] == "{}"
    changed["requestContext"]["stage"] = "other"
    assert load_event("api_submit_job")["requestContext"]["stage"] == "prod"

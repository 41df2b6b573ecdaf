"""The OpenAPI document: valid, whole, small, and the one in docs/."""

import json
import re
from pathlib import Path
from typing import Any

import openapi_spec_validator
import pytest

from functions.api import handler, openapi, views
from jobplatform import problems
from tests.helpers.api import document, operations
from tests.helpers.openapi import PATH, committed_text

LAMBDA_BYTES = 6 * 2**20
OPERATIONS = [(method, path) for method, path, _ in operations()]


def operation(method: str, path: str) -> dict[str, Any]:
    found: dict[str, Any] = document()["paths"][path][method]
    return found


def test_document_in_docs_is_that_of_the_code() -> None:
    assert PATH.read_text() == committed_text(), "write it anew with `make openapi`"


def test_document_is_valid_openapi_3_1() -> None:
    assert document()["openapi"] == "3.1.0"
    openapi_spec_validator.validate(document())


def test_calls_are_those_of_the_design() -> None:
    assert {f"{method.upper()} {path}" for method, path in OPERATIONS} == {
        "POST /jobs",
        "GET /jobs",
        "GET /jobs/{job_id}",
        "GET /jobs/{job_id}/download",
        "POST /jobs/{job_id}/cancel",
        "GET /templates",
        "GET /templates/{name}",
        "GET /health",
    }


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_every_call_answer_and_parameter_is_described(method: str, path: str) -> None:
    found = operation(method, path)

    assert re.fullmatch(r"[a-z]+(_[a-z]+)*", found["operationId"])
    assert found["summary"]
    assert found["description"]
    assert found["tags"]
    for parameter in found.get("parameters", []):
        assert parameter["description"], parameter["name"]
        assert {"type": "null"} not in parameter["schema"].get("anyOf", []), parameter["name"]
    for status, answer in found["responses"].items():
        assert answer["description"], status
        kinds = set(answer["content"])
        error = int(status) >= 400 and (path, status) != ("/health", "503")
        assert kinds == ({problems.CONTENT_TYPE} if error else {"application/json"})
    # What API Gateway or a failure may say anywhere.
    assert {"429", "500", "503", "504"} <= set(found["responses"])


def test_names_of_calls_are_used_once() -> None:
    names = [operation(method, path)["operationId"] for method, path in OPERATIONS]

    assert len(names) == len(set(names))


def test_everything_but_health_needs_a_key() -> None:
    assert document()["security"] == [{"ApiKey": []}]
    for method, path in OPERATIONS:
        assert operation(method, path).get("security") == ([] if path == "/health" else None)
        assert ("403" in operation(method, path)["responses"]) == (path != "/health")


def test_what_may_be_asked_for_anew_says_when() -> None:
    for method, path in OPERATIONS:
        for status in ("409", "429", "503"):
            answer = operation(method, path)["responses"].get(status)
            if answer and path != "/health":
                assert "Retry-After" in answer["headers"], (path, status)


def test_document_names_no_kind_of_error_but_the_problem() -> None:
    assert "HTTPValidationError" not in json.dumps(document())
    assert set(document()["components"]["schemas"]["Problem"]["required"]) == {
        "type",
        "title",
        "status",
        "detail",
        "code",
        "instance",
    }


def test_requests_forbid_what_they_do_not_know() -> None:
    assert document()["components"]["schemas"]["SubmitJobRequest"]["additionalProperties"] is False


def test_examples_of_the_document_are_accepted() -> None:
    examples = document()["components"]["schemas"]["SubmitJobRequest"]["examples"]

    assert examples
    for example in examples:
        views.SubmitJobRequest.model_validate(example)


def test_every_field_that_a_client_sends_is_described() -> None:
    schemas = document()["components"]["schemas"]

    for name, schema in schemas["SubmitJobRequest"]["properties"].items():
        kind = schemas.get(schema.get("$ref", "").rpartition("/")[2], {})
        assert schema.get("description") or kind.get("description"), name


def test_addresses_are_right_behind_every_stage_and_domain() -> None:
    (server,) = document()["servers"]

    assert server["url"] == "."


def test_pages_fit_into_what_lambda_may_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A response is JSON with the page as a text in it."""
    for page in (openapi._page(handler.app), openapi.description(handler.app)):
        assert len(json.dumps(page)) < LAMBDA_BYTES / 2


def test_page_cannot_be_left_by_what_a_description_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """The document is inside a script of the page, and an adopter's words are in the document."""
    monkeypatch.setattr(openapi, "description", lambda app: '{"x": "</script><b>"}')
    openapi._page.cache_clear()
    try:
        page = openapi._page(handler.app)
    finally:
        openapi._page.cache_clear()

    assert "</script><b>" not in page


def test_document_is_where_the_pages_link_to() -> None:
    assert Path(__file__).parents[2] / "docs" / "openapi.json" == PATH

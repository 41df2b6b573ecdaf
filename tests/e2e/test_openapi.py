"""The deployed API against its own description: whatever is sent, it answers as announced."""

import hypothesis
import pytest
import schemathesis
from schemathesis import openapi
from schemathesis.checks import not_a_server_error
from schemathesis.schemas import BaseSchema
from schemathesis.specs.openapi import checks as conformance

from functions.api import handler
from functions.api import openapi as description
from infra.local.up import LocalTarget

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

_CONFORMANCE = [
    not_a_server_error,
    conformance.status_code_conformance,
    conformance.content_type_conformance,
    conformance.response_headers_conformance,
    conformance.response_schema_conformance,
]
_OPERATIONS = [
    (path, method)
    for path, item in description.document(handler.app, "1")["paths"].items()
    for method in item
]


@pytest.fixture(scope="module")
def described(target: LocalTarget) -> BaseSchema:
    found = openapi.from_url(f"{target.api_url}/openapi.json")
    found.config.update(base_url=target.api_url)
    return found


@pytest.mark.parametrize(("path", "method"), _OPERATIONS)
def test_every_answer_is_as_the_description_says(
    target: LocalTarget, described: BaseSchema, path: str, method: str
) -> None:
    operation = described[path][method.upper()]

    @hypothesis.settings(
        max_examples=20,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(case=operation.as_strategy())
    def answers(case: schemathesis.Case) -> None:
        case.call_and_validate(headers={"x-api-key": target.keys["pro"]}, checks=_CONFORMANCE)

    answers()

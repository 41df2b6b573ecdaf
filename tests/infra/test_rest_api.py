"""The door: which paths need a key, what the plans allow, and how the door itself says no."""

import json
from typing import Any

import pytest

from infra.constructs import rest_api
from jobplatform import errors, problems
from jobplatform.plans import PLANS
from tests.infra.conftest import Synthesized


def methods(synthesized: Synthesized) -> dict[tuple[str, str], dict[str, Any]]:
    """Every method by its path and verb."""
    service = synthesized.service
    paths: dict[str, str] = {}

    def path_of(resource_id: str) -> str:
        if resource_id not in paths:
            resource = service.resource(resource_id)["Properties"]
            parent = resource["ParentId"]
            above = path_of(parent["Ref"]) if "Ref" in parent else ""
            paths[resource_id] = f"{above}/{resource['PathPart']}"
        return paths[resource_id]

    return {
        (path_of(method["ResourceId"]["Ref"]), method["HttpMethod"]): method
        for method in service.all("AWS::ApiGateway::Method").values()
    }


def test_everything_but_health_and_docs_needs_a_key(any_target: Synthesized) -> None:
    open_to_all = {
        key for key, method in methods(any_target).items() if not method.get("ApiKeyRequired")
    }

    assert open_to_all == {
        ("/health", "GET"),
        ("/openapi.json", "GET"),
        ("/docs", "GET"),
        ("/docs/{proxy+}", "GET"),
    }


def test_all_methods_of_jobs_and_templates_reach_the_function(any_target: Synthesized) -> None:
    found = methods(any_target)

    for path in ("/jobs", "/jobs/{proxy+}", "/templates", "/templates/{proxy+}", "/{proxy+}"):
        assert found[path, "ANY"]["Integration"]["Type"] == "AWS_PROXY"


def test_each_plan_is_a_usage_plan_of_the_stage(any_target: Synthesized) -> None:
    service = any_target.service
    stage = service.id_of("AWS::ApiGateway::Stage")
    made = {
        plan["UsagePlanName"].rpartition("-")[2]: plan
        for plan in service.all("AWS::ApiGateway::UsagePlan").values()
    }

    assert made.keys() == PLANS.keys()
    for name, plan in PLANS.items():
        assert made[name]["Throttle"] == {
            "RateLimit": plan.requests_per_second,
            "BurstLimit": plan.burst,
        }
        assert made[name]["Quota"] == {"Limit": plan.requests_per_day, "Period": "DAY"}
        assert [one["Stage"] for one in made[name]["ApiStages"]] == [{"Ref": stage}]


def test_paths_without_a_key_are_throttled_by_themselves(any_target: Synthesized) -> None:
    stage = any_target.service.one("AWS::ApiGateway::Stage")
    limits = {
        (setting["ResourcePath"], setting["HttpMethod"]): setting["ThrottlingRateLimit"]
        for setting in stage["MethodSettings"]
    }

    assert stage["StageName"] == "prod"
    assert limits["/*", "*"] >= sum(plan.requests_per_second for plan in PLANS.values())
    for path in ("/~1health", "/~1openapi.json", "/~1docs", "/~1docs~1{proxy+}"):
        assert limits[path, "GET"] < limits["/*", "*"]


def test_access_log_names_no_key_and_has_an_end(aws_target: Synthesized) -> None:
    stage = aws_target.service.one("AWS::ApiGateway::Stage")
    log = aws_target.service.one("AWS::Logs::LogGroup", "RestAccessLogs")

    assert log["RetentionInDays"] == 90
    line = json.loads(stage["AccessLogSetting"]["Format"])
    assert "$context.identity.apiKey" not in line.values()
    assert line["request_id"] == "$context.requestId"


def answers(synthesized: Synthesized) -> dict[str, dict[str, Any]]:
    return {
        answer["ResponseType"]: answer
        for answer in synthesized.service.all("AWS::ApiGateway::GatewayResponse").values()
    }


def test_every_refusal_of_the_door_is_a_problem(any_target: Synthesized) -> None:
    for response_type, answer in answers(any_target).items():
        body = json.loads(answer["ResponseTemplates"]["application/json"])
        assert body.keys() == {"type", "title", "status", "detail", "code", "instance"}
        assert body["type"] == problems.TYPE_BASE + body["code"], response_type
        assert body["instance"] == "$context.requestId"
        assert str(body["status"]) == answer["StatusCode"]
        assert (
            answer["ResponseParameters"]["gatewayresponse.header.Content-Type"]
            == f"'{problems.CONTENT_TYPE}'"
        )


@pytest.mark.parametrize(
    ("response_type", "status", "code"),
    [
        ("INVALID_API_KEY", "403", "forbidden"),
        ("THROTTLED", "429", "too_many_requests"),
        ("QUOTA_EXCEEDED", "429", "quota_exceeded"),
        ("INTEGRATION_TIMEOUT", "504", "gateway_timeout"),
        ("MISSING_AUTHENTICATION_TOKEN", "404", "not_found"),
        ("REQUEST_TOO_LARGE", "413", "payload_too_large"),
        ("UNSUPPORTED_MEDIA_TYPE", "415", "unsupported_media_type"),
        ("UNAUTHORIZED", "401", "unauthorized"),
        ("BAD_REQUEST_BODY", "400", "bad_request"),
        ("DEFAULT_4XX", "400", "bad_request"),
        ("DEFAULT_5XX", "500", "internal_error"),
    ],
)
def test_refusals_have_the_status_and_code_that_the_docs_explain(
    any_target: Synthesized, response_type: str, status: str, code: str
) -> None:
    answer = answers(any_target)[response_type]

    assert answer["StatusCode"] == status
    assert json.loads(answer["ResponseTemplates"]["application/json"])["code"] == code


def test_who_is_too_quick_is_told_when_to_come_back(any_target: Synthesized) -> None:
    for response_type in ("THROTTLED", "QUOTA_EXCEEDED"):
        headers = answers(any_target)[response_type]["ResponseParameters"]
        assert int(headers["gatewayresponse.header.Retry-After"].strip("'")) >= 1


def test_door_and_function_mean_the_same_by_the_same_code() -> None:
    assert rest_api.PROBLEM_TYPE_BASE == problems.TYPE_BASE
    of_the_function = {
        error.code: status for error, status in problems.STATUS.items() if error.code
    }
    for answer in rest_api.ANSWERS.values():
        assert of_the_function.get(answer.code, answer.status) == answer.status


def test_function_has_no_error_code_that_only_the_door_uses() -> None:
    """A client that got `quota_exceeded` knows that the function never saw its request."""
    codes = {error.code for error in errors.RequestError.__subclasses__()}

    assert not codes & {"quota_exceeded", "too_many_requests", "gateway_timeout", "unauthorized"}

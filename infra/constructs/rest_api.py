"""The REST API: who may come in, how often, and what the door itself answers."""

import dataclasses
import json
from collections.abc import Iterable

from aws_cdk import RemovalPolicy, Size
from aws_cdk import aws_apigateway as apigateway
from aws_cdk import aws_lambda as lambda_
from aws_cdk import aws_logs as logs
from constructs import Construct

from infra.targets import Target
from jobplatform.plans import Plan

PROBLEM_TYPE_BASE = "/docs/errors#"
"""The same as `jobplatform.problems.TYPE_BASE`; a test compares them."""

_PUBLIC = ("health", "openapi.json", "docs", "docs/{proxy+}")
_WITH_KEY = ("jobs", "jobs/{proxy+}", "templates", "templates/{proxy+}", "{proxy+}")

# For the paths without a key, which no usage plan bounds; and for all plans together.
_PUBLIC_RATE, _PUBLIC_BURST = 20, 40
_STAGE_RATE, _STAGE_BURST = 1_000, 2_000


@dataclasses.dataclass(frozen=True)
class _Answer:
    """What the door says, as the functions would have said it."""

    status: int
    code: str
    title: str
    detail: str
    retry_after: int | None = None


_BAD_REQUEST = _Answer(400, "bad_request", "Bad request", "The request cannot be understood.")
_FORBIDDEN = _Answer(403, "forbidden", "Forbidden", "The header x-api-key needs a valid API key.")
_NOT_FOUND = _Answer(
    404, "not_found", "Not found", "There is nothing at this path for this method."
)
_INTERNAL = _Answer(500, "internal_error", "Internal error", "The request failed; try it again.")
_TIMEOUT = _Answer(
    504, "gateway_timeout", "Gateway timeout", "The answer took too long; try again."
)

# DEFAULT_4XX and DEFAULT_5XX stand for what is not named here, such as a type that AWS adds later.
ANSWERS = {
    "DEFAULT_4XX": _BAD_REQUEST,
    "DEFAULT_5XX": _INTERNAL,
    "BAD_REQUEST_BODY": _BAD_REQUEST,
    "BAD_REQUEST_PARAMETERS": _BAD_REQUEST,
    "UNAUTHORIZED": _Answer(401, "unauthorized", "Unauthorized", "The request is not authorized."),
    "ACCESS_DENIED": _FORBIDDEN,
    "EXPIRED_TOKEN": _FORBIDDEN,
    "INVALID_API_KEY": _FORBIDDEN,
    "INVALID_SIGNATURE": _FORBIDDEN,
    "WAF_FILTERED": _FORBIDDEN,
    # API Gateway's name for a path or method that it does not know.
    "MISSING_AUTHENTICATION_TOKEN": _NOT_FOUND,
    "RESOURCE_NOT_FOUND": _NOT_FOUND,
    "REQUEST_TOO_LARGE": _Answer(
        413, "payload_too_large", "Payload too large", "The request body is over the limit."
    ),
    "UNSUPPORTED_MEDIA_TYPE": _Answer(
        415, "unsupported_media_type", "Unsupported media type", "Send application/json."
    ),
    "THROTTLED": _Answer(
        429, "too_many_requests", "Too many requests", "The plan's request rate is used up.", 1
    ),
    "QUOTA_EXCEEDED": _Answer(
        429,
        "quota_exceeded",
        "Quota exceeded",
        "The plan's requests of this day are used up.",
        3600,
    ),
    "API_CONFIGURATION_ERROR": _INTERNAL,
    "AUTHORIZER_CONFIGURATION_ERROR": _INTERNAL,
    "AUTHORIZER_FAILURE": _INTERNAL,
    "INTEGRATION_FAILURE": _TIMEOUT,
    "INTEGRATION_TIMEOUT": _TIMEOUT,
}


_ACCESS_LOG = json.dumps(
    {
        "request_id": "$context.requestId",
        "time": "$context.requestTimeEpoch",
        "method": "$context.httpMethod",
        "path": "$context.path",
        "status": "$context.status",
        "response_bytes": "$context.responseLength",
        "latency_ms": "$context.responseLatency",
        "source_ip": "$context.identity.sourceIp",
        "api_key_id": "$context.identity.apiKeyId",
        "error": "$context.error.responseType",
    }
)


class RestApi(Construct):
    """One function behind all paths; API keys and usage plans before those that cost something."""

    def __init__(
        self,
        scope: Construct,
        id: str,
        *,
        name: str,
        function: lambda_.IFunction,
        plans: Iterable[Plan],
        target: Target,
    ) -> None:
        super().__init__(scope, id)
        self._name = name
        access_log = self._access_log(target)
        self.api = apigateway.RestApi(
            self,
            "Api",
            rest_api_name=name,
            description="Large exports as asynchronous jobs",
            endpoint_types=[apigateway.EndpointType.REGIONAL],
            # Here rather than in the function, whose binary answers API Gateway would need listed.
            min_compression_size=Size.kibibytes(2),
            # The role is one for the whole account and region, so it outlives this stack.
            cloud_watch_role=target.api_access_logs,
            cloud_watch_role_removal_policy=(
                RemovalPolicy.RETAIN if target.api_access_logs else None
            ),
            deploy_options=apigateway.StageOptions(
                stage_name="prod",
                throttling_rate_limit=_STAGE_RATE,
                throttling_burst_limit=_STAGE_BURST,
                method_options={
                    f"/{path}/GET": apigateway.MethodDeploymentOptions(
                        throttling_rate_limit=_PUBLIC_RATE, throttling_burst_limit=_PUBLIC_BURST
                    )
                    for path in _PUBLIC
                },
                metrics_enabled=True,
                tracing_enabled=target.tracing,
                access_log_destination=access_log,
                access_log_format=(
                    apigateway.AccessLogFormat.custom(_ACCESS_LOG) if access_log else None
                ),
            ),
        )
        # The stack has an output of its own for it.
        self.api.node.try_remove_child("Endpoint")
        # One permission for the whole API: one per method would fill the function's policy.
        integration = apigateway.LambdaIntegration(function, scope_permission_to_method=False)
        for path in _PUBLIC:
            self.api.root.resource_for_path(path).add_method("GET", integration)
        for path in _WITH_KEY:
            resource = self.api.root.resource_for_path(path)
            resource.add_method("ANY", integration, api_key_required=True)
        for response_type, answer in ANSWERS.items():
            self._answer(response_type, answer)
        self.usage_plans = {plan.name: self._usage_plan(plan) for plan in plans}

    def _access_log(self, target: Target) -> apigateway.LogGroupLogDestination | None:
        if not target.api_access_logs:
            return None
        return apigateway.LogGroupLogDestination(
            logs.LogGroup(
                self,
                "AccessLogs",
                retention=logs.RetentionDays[target.log_retention],
                removal_policy=RemovalPolicy.DESTROY,
            )
        )

    def _answer(self, response_type: str, answer: _Answer) -> None:
        headers = {"Content-Type": "'application/problem+json'"}
        if answer.retry_after is not None:
            headers["Retry-After"] = f"'{answer.retry_after}'"
        self.api.add_gateway_response(
            "".join(word.capitalize() for word in response_type.split("_")),
            type=apigateway.ResponseType.of(response_type),
            status_code=str(answer.status),
            response_headers=headers,
            templates={
                "application/json": json.dumps(
                    {
                        "type": f"{PROBLEM_TYPE_BASE}{answer.code}",
                        "title": answer.title,
                        "status": answer.status,
                        "detail": answer.detail,
                        "code": answer.code,
                        "instance": "$context.requestId",
                    }
                )
            },
        )

    def _usage_plan(self, plan: Plan) -> apigateway.UsagePlan:
        return self.api.add_usage_plan(
            f"{plan.name.capitalize()}Plan",
            name=f"{self._name}-{plan.name}",
            throttle=apigateway.ThrottleSettings(
                rate_limit=plan.requests_per_second, burst_limit=plan.burst
            ),
            quota=apigateway.QuotaSettings(
                limit=plan.requests_per_day, period=apigateway.Period.DAY
            ),
            api_stages=[
                apigateway.UsagePlanPerApiStage(api=self.api, stage=self.api.deployment_stage)
            ],
        )

"""Errors as application/problem+json (RFC 9457); the only place in the core that knows statuses."""

import json
import math
from http import HTTPStatus
from typing import Any

from aws_lambda_powertools.event_handler import APIGatewayRestResolver, Response
from aws_lambda_powertools.event_handler.api_gateway import ResponseBuilder
from aws_lambda_powertools.event_handler.exceptions import NotFoundError
from aws_lambda_powertools.event_handler.openapi.exceptions import RequestValidationError
from aws_lambda_powertools.utilities.data_classes import APIGatewayProxyEvent

from jobplatform import errors
from jobplatform.observability import logger

CONTENT_TYPE = "application/problem+json"
TYPE_BASE = "/docs/errors#"
"""Start of every `type`; what follows is the code, and the heading in docs/reference/errors.md."""

STATUS: dict[type[errors.RequestError], HTTPStatus] = {
    errors.RequestError: HTTPStatus.BAD_REQUEST,
    errors.MalformedRequest: HTTPStatus.BAD_REQUEST,
    errors.InvalidIdempotencyKey: HTTPStatus.BAD_REQUEST,
    errors.InvalidCursor: HTTPStatus.BAD_REQUEST,
    errors.UnknownClient: HTTPStatus.FORBIDDEN,
    errors.RouteNotFound: HTTPStatus.NOT_FOUND,
    errors.JobNotFound: HTTPStatus.NOT_FOUND,
    errors.TemplateNotFound: HTTPStatus.NOT_FOUND,
    errors.MethodNotAllowed: HTTPStatus.METHOD_NOT_ALLOWED,
    errors.SubmitInProgress: HTTPStatus.CONFLICT,
    errors.ResultNotReady: HTTPStatus.CONFLICT,
    errors.JobNotCancellable: HTTPStatus.CONFLICT,
    errors.ResultExpired: HTTPStatus.GONE,
    errors.PayloadTooLarge: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    errors.UnsupportedMediaType: HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    errors.InvalidRequest: HTTPStatus.UNPROCESSABLE_ENTITY,
    errors.IdempotencyKeyReused: HTTPStatus.UNPROCESSABLE_ENTITY,
    errors.TooManyQueuedJobs: HTTPStatus.TOO_MANY_REQUESTS,
    errors.ServiceUnavailable: HTTPStatus.SERVICE_UNAVAILABLE,
}


GATEWAY: dict[str, tuple[HTTPStatus, str]] = {
    "unauthorized": (HTTPStatus.UNAUTHORIZED, "The request is not authorized."),
    "too_many_requests": (HTTPStatus.TOO_MANY_REQUESTS, "The plan's request rate is used up."),
    "quota_exceeded": (
        HTTPStatus.TOO_MANY_REQUESTS,
        "The plan's requests of this day are used up.",
    ),
    "internal_error": (
        HTTPStatus.INTERNAL_SERVER_ERROR,
        "Something went wrong on our side. Quote the instance if you report it.",
    ),
    "gateway_timeout": (HTTPStatus.GATEWAY_TIMEOUT, "The answer took too long; try again."),
}
"""Codes that API Gateway answers with, or that stand for an error of ours; none is raised."""

MAX_ERRORS = 50
_MAX_TEXT = 200


def codes() -> dict[str, tuple[HTTPStatus, str]]:
    """Every code that a caller can meet, with its status and what it means."""
    raised = {kind.code: (status, kind().message) for kind, status in STATUS.items()}
    return {**raised, **GATEWAY}


def install(app: APIGatewayRestResolver) -> None:
    """Makes `app` answer every error as a problem."""

    @app.exception_handler(errors.RequestError)
    def _request_error(error: errors.RequestError) -> Response[Any]:
        return _response(error, app.current_event)

    @app.exception_handler(RequestValidationError)
    def _invalid(error: RequestValidationError) -> Response[Any]:
        return _response(errors.InvalidRequest(errors=list(error.errors())), app.current_event)

    @app.exception_handler(NotFoundError)
    def _no_route(error: NotFoundError) -> Response[Any]:
        methods = sorted(_methods_at(app, app.current_event.path))
        if not methods:
            return _response(errors.RouteNotFound(), app.current_event)
        response = _response(
            errors.MethodNotAllowed(f"This address answers {', '.join(methods)} only."),
            app.current_event,
        )
        response.headers["Allow"] = ", ".join(methods)
        return response

    @app.exception_handler(Exception)
    def _internal(error: Exception) -> Response[Any]:
        # The operator finds the cause by the request's id; the customer reads none of it.
        logger.exception("request failed")
        status, detail = GATEWAY["internal_error"]
        body = _body(app.current_event, code="internal_error", status=status, detail=detail)
        return Response(status_code=status.value, content_type=CONTENT_TYPE, body=body)


def answer(error: errors.RequestError, event: dict[str, Any]) -> dict[str, Any]:
    """The whole answer to a request that was refused before the app saw it."""
    request: Any = APIGatewayProxyEvent(event)
    return ResponseBuilder(_response(error, request)).build(request)


def _response(error: errors.RequestError, event: Any) -> Response[Any]:
    status = next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)
    headers: dict[str, str | list[str]] = {}
    if error.retry_after is not None:
        headers["Retry-After"] = str(math.ceil(error.retry_after.total_seconds()))
    return Response(
        status_code=status.value,
        content_type=CONTENT_TYPE,
        headers=headers,
        body=_body(
            event, code=error.code, status=status, detail=error.message, details=error.errors
        ),
    )


def _body(
    event: Any,
    *,
    code: str,
    status: HTTPStatus,
    detail: str,
    details: list[dict[str, Any]] | None = None,
) -> str:
    body: dict[str, Any] = {
        "type": TYPE_BASE + code,
        "title": status.phrase,
        "status": status.value,
        "detail": detail,
        "code": code,
        "instance": event.request_context.request_id,
    }
    if details:
        body["errors"] = [_short(detail) for detail in details[:MAX_ERRORS]]
        if len(details) > MAX_ERRORS:
            body["detail"] += f" There are {len(details)}, of which {MAX_ERRORS} are shown."
    return json.dumps(body)


def _short(detail: dict[str, Any]) -> dict[str, Any]:
    """Where and what is wrong, without the value: that may be long, or nobody else's business."""
    where = [part if isinstance(part, int) else str(part)[:_MAX_TEXT] for part in detail["loc"]]
    return {"loc": where, "msg": detail["msg"][:_MAX_TEXT], "type": detail["type"]}


def _methods_at(app: APIGatewayRestResolver, path: str) -> set[str]:
    routes = [*app._static_routes, *app._dynamic_routes]
    return {route.method for route in routes if route.rule.match(path)}

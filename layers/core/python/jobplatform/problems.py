"""Errors as application/problem+json (RFC 9457); the only place in the core that knows HTTP statuses."""

import json
import math
from http import HTTPStatus
from typing import Any

from aws_lambda_powertools.event_handler import APIGatewayRestResolver, Response
from aws_lambda_powertools.event_handler.exceptions import NotFoundError
from aws_lambda_powertools.event_handler.openapi.exceptions import (
    RequestUnsupportedContentType,
    RequestValidationError,
)

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


def install(app: APIGatewayRestResolver) -> None:
    """Makes `app` answer every error as a problem."""

    @app.exception_handler(errors.RequestError)
    def _request_error(error: errors.RequestError) -> Response[Any]:
        return _response(app, error)

    @app.exception_handler(RequestValidationError)
    def _invalid(error: RequestValidationError) -> Response[Any]:
        details = [
            {"loc": list(detail["loc"]), "msg": detail["msg"], "type": detail["type"]}
            for detail in error.errors()
        ]
        if any(detail["type"] == "json_invalid" for detail in details):
            return _response(app, errors.MalformedRequest())
        return _response(app, errors.InvalidRequest(errors=details))

    @app.exception_handler(RequestUnsupportedContentType)
    def _unsupported(error: RequestUnsupportedContentType) -> Response[Any]:
        return _response(app, errors.UnsupportedMediaType())

    @app.exception_handler(NotFoundError)
    def _no_route(error: NotFoundError) -> Response[Any]:
        methods = sorted(_methods_at(app, app.current_event.path))
        if not methods:
            return _response(app, errors.RouteNotFound())
        response = _response(
            app, errors.MethodNotAllowed(f"This address answers {', '.join(methods)} only.")
        )
        response.headers["Allow"] = ", ".join(methods)
        return response

    @app.exception_handler(Exception)
    def _internal(error: Exception) -> Response[Any]:
        # The operator finds the cause by the request's id; the customer reads none of it.
        logger.exception("request failed")
        return Response(
            status_code=500,
            content_type=CONTENT_TYPE,
            body=_body(
                app,
                code="internal_error",
                status=HTTPStatus.INTERNAL_SERVER_ERROR,
                detail="Something went wrong on our side. Quote the instance if you report it.",
            ),
        )


def _response(app: APIGatewayRestResolver, error: errors.RequestError) -> Response[Any]:
    status = next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)
    headers: dict[str, str | list[str]] = {}
    if error.retry_after is not None:
        headers["Retry-After"] = str(math.ceil(error.retry_after.total_seconds()))
    return Response(
        status_code=status.value,
        content_type=CONTENT_TYPE,
        headers=headers,
        body=_body(app, code=error.code, status=status, detail=error.message, errors=error.errors),
    )


def _body(
    app: APIGatewayRestResolver,
    *,
    code: str,
    status: HTTPStatus,
    detail: str,
    errors: list[dict[str, Any]] | None = None,
) -> str:
    body: dict[str, Any] = {
        "type": TYPE_BASE + code,
        "title": status.phrase,
        "status": status.value,
        "detail": detail,
        "code": code,
        "instance": app.current_event.request_context.request_id,
    }
    if errors:
        body["errors"] = errors
    # The validated values may hold what JSON cannot say, and what a log would rather not see: neither goes out.
    return json.dumps(body, default=str)


def _methods_at(app: APIGatewayRestResolver, path: str) -> set[str]:
    routes = [*app._static_routes, *app._dynamic_routes]
    return {route.method for route in routes if route.rule.match(path)}

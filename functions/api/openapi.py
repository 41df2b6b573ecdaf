"""The API's description of itself: /openapi.json (OpenAPI 3.1) and Swagger UI at /docs."""

import functools
import html
import inspect
import json
from typing import Any

from aws_lambda_powertools.event_handler import APIGatewayRestResolver, Response
from aws_lambda_powertools.event_handler.openapi.models import APIKey, APIKeyIn, Server
from aws_lambda_powertools.event_handler.openapi.swagger_ui import generate_swagger_html

from functions.api import views
from jobplatform import problems
from jobplatform.settings import ApiSettings

TITLE = "Async Job Platform"
DESCRIPTION = (
    "Submit a report as a job, follow it, download its result. Errors are"
    " `application/problem+json` (RFC 9457) with a stable `code`. Times are RFC 3339 with an"
    " offset. Paths are below the address of this API."
)
_HTML = "text/html; charset=utf-8"
_SCHEME = "ApiKey"
_PUBLIC = ("/health",)
_REFERENCE = "#/components/schemas/"


def install(app: APIGatewayRestResolver) -> None:
    """Adds the routes that describe `app`; none needs a key."""

    @app.get("/openapi.json", include_in_schema=False, enable_validation=False)
    def _openapi() -> Response[str]:
        return Response(200, "application/json", description(app))

    @app.get("/docs", include_in_schema=False, enable_validation=False)
    def _docs() -> Response[str]:
        return Response(200, _HTML, _page(app))

    @app.get("/docs/errors", include_in_schema=False, enable_validation=False)
    def _errors() -> Response[str]:
        return Response(200, _HTML, _errors_page())


def description(app: APIGatewayRestResolver) -> str:
    """The OpenAPI document as JSON."""
    return json.dumps(document(app, ApiSettings.from_env().version), separators=(",", ":"))


def document(app: APIGatewayRestResolver, version: str) -> dict[str, Any]:
    """The OpenAPI document: that of Powertools, with every error a Problem."""
    schema = app.get_openapi_schema(
        title=TITLE,
        version=version,
        openapi_version="3.1.0",
        description=DESCRIPTION,
        # Relative to this document, so that it is right behind every stage and domain.
        servers=[Server(url=".")],
        security_schemes={
            _SCHEME: APIKey.model_validate({"name": "x-api-key", "in": APIKeyIn.header})
        },
        security=[{_SCHEME: []}],
    )
    found: dict[str, Any] = json.loads(schema.model_dump_json(by_alias=True, exclude_none=True))
    for route in [*app._static_routes, *app._dynamic_routes]:
        operation = found["paths"].get(route.openapi_path, {}).get(route.method.lower())
        if operation:
            operation["description"] = inspect.getdoc(route.func)
            if route.openapi_path in _PUBLIC:
                operation["security"] = []
            operation["responses"] = _own_responses(operation["responses"])
            for parameter in operation.get("parameters", []):
                _leave_out_null(parameter["schema"])
    schemas = found["components"]["schemas"]
    for name in ("HTTPValidationError", "ResponseValidationError", "ValidationError"):
        schemas.pop(name, None)
    problem = views.Problem.model_json_schema(ref_template=_REFERENCE + "{model}")
    schemas.update(problem.pop("$defs"))
    schemas["Problem"] = problem
    return found


def _own_responses(responses: dict[str, Any]) -> dict[str, Any]:
    """Powertools says of every route that it may answer its own kind of 422; ours never do."""
    return {
        status: answer
        for status, answer in sorted(responses.items())
        if "HTTPValidationError" not in json.dumps(answer)
    }


def _leave_out_null(schema: dict[str, Any]) -> None:
    """A parameter that may be left out is not one that may be null."""
    kinds = [kind for kind in schema.get("anyOf", []) if kind != {"type": "null"}]
    if len(kinds) == 1:
        del schema["anyOf"]
        schema.update(kinds[0])


def _errors_page() -> str:
    """Where the `type` of every problem leads."""
    entries = "".join(
        f'<dt id="{code}"><code>{code}</code> ({status.value} {status.phrase})</dt>'
        f"<dd>{html.escape(meaning)}</dd>"
        for code, (status, meaning) in sorted(problems.codes().items())
    )
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Errors of {TITLE}</title>'
        f"<h1>Errors</h1><p>Every error is a problem (RFC 9457) with one of these codes.</p>"
        f"<dl>{entries}</dl></html>"
    )


@functools.cache
def _page(app: APIGatewayRestResolver) -> str:
    from importlib import resources

    assets = resources.files("aws_lambda_powertools.event_handler.openapi.swagger_ui")
    return generate_swagger_html(
        description(app).replace("</", "<\\/"),
        (assets / "swagger-ui-bundle.min.js").read_text(encoding="utf-8"),
        (assets / "swagger-ui.min.css").read_text(encoding="utf-8"),
        "",
        None,
        persist_authorization=False,
    )

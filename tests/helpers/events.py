"""The events in events/, as AWS sends them to the functions."""

import copy
import json
from pathlib import Path
from typing import Any, cast

FOLDER = Path(__file__).parents[2] / "events"


def load_event(name: str, **changes: Any) -> dict[str, Any]:
    """The event of `events/<name>.json`; changes to objects in it are merged, others replace."""
    found = json.loads((FOLDER / f"{name}.json").read_text())
    return cast(dict[str, Any], merged(found, changes))


def merged(event: Any, changes: Any) -> Any:
    if not (isinstance(event, dict) and isinstance(changes, dict)):
        return copy.deepcopy(changes)
    return {
        name: merged(event.get(name), changes[name]) if name in changes else event[name]
        for name in {**event, **changes}
    }


def api_request(
    method: str,
    path: str,
    *,
    body: str | None = None,
    headers: dict[str, Any] | None = None,
    query: dict[str, Any] | None = None,
    key: str | None = None,
    base64: bool = False,
) -> dict[str, Any]:
    """A request to any path of the API; a header or parameter that is a list is sent so often."""
    event = load_event("api_get_template")
    several = {name: [value] for name, value in event["headers"].items() if name != "x-api-key"}
    for name, value in {"x-api-key": key, **(headers or {})}.items():
        if value is not None:
            several[name] = value if isinstance(value, list) else [value]
    asked = {
        name: value if isinstance(value, list) else [value] for name, value in (query or {}).items()
    }
    first, _, rest = path.removeprefix("/").partition("/")
    resource = f"/{first}/{{proxy+}}" if rest else f"/{first}"
    return {
        **event,
        "resource": resource,
        "path": path,
        "httpMethod": method,
        # API Gateway puts the last of several values here.
        "headers": {name: values[-1] for name, values in several.items()},
        "multiValueHeaders": several,
        "queryStringParameters": {name: values[-1] for name, values in asked.items()} or None,
        "multiValueQueryStringParameters": asked or None,
        "pathParameters": {"proxy": rest} if rest else None,
        "requestContext": {
            **event["requestContext"],
            "resourcePath": resource,
            "path": f"/prod{path}",
            "httpMethod": method,
        },
        "body": body,
        "isBase64Encoded": base64,
    }

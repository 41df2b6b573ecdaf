"""Requests as API Gateway hands them over, read more strictly than Powertools reads them.

What passes can be stored in Postgres and shown again unchanged; everything else is the caller's
error, before it reaches code that would fail over it.
"""

import base64
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from jobplatform import errors

MAX_BODY_BYTES = 64 * 1024
MAX_DEPTH = 32
"""Of objects and arrays in a body."""
_JSON = "application/json"
_KEY_LENGTH = 255


def checked(event: Mapping[str, Any]) -> dict[str, Any]:
    """The event with its body as text; bodies that no route reads are left out.

    Raises `errors.PayloadTooLarge`, `UnsupportedMediaType`, `MalformedRequest`,
    `InvalidIdempotencyKey`.
    """
    if (event["httpMethod"], event["path"].rstrip("/")) != ("POST", "/jobs"):
        return {**event, "body": None, "isBase64Encoded": False}
    text = _body(event)
    if not _is_json(header_values(event, "content-type")):
        raise errors.UnsupportedMediaType
    _check_idempotency_key(header_values(event, "idempotency-key"))
    # Powertools compares the type letter by letter.
    headers = {name.lower(): value for name, value in (event.get("headers") or {}).items()}
    headers["content-type"] = _JSON
    return {**event, "headers": headers, "body": text, "isBase64Encoded": False}


def _body(event: Mapping[str, Any]) -> str:
    text = event.get("body") or ""
    try:
        if event.get("isBase64Encoded"):
            body = base64.b64decode(text, validate=True)
        else:
            body = text.encode()
        if len(body) > MAX_BODY_BYTES:
            raise errors.PayloadTooLarge(f"The body may be {MAX_BODY_BYTES} bytes at the most.")
        decoded = body.decode()
    except ValueError as error:
        raise errors.MalformedRequest("The body is not text in UTF-8.") from error
    if not decoded.strip():
        raise errors.MalformedRequest("The body is empty.")
    return decoded


def _is_json(content_types: list[str]) -> bool:
    if len(content_types) != 1:
        return False
    kind, *parameters = content_types[0].lower().split(";")
    charsets = [text.strip() for text in parameters if text.strip().startswith("charset=")]
    return kind.strip() == _JSON and all(
        charset.removeprefix("charset=").strip('"') in ("utf-8", "utf8") for charset in charsets
    )


def _check_idempotency_key(keys: list[str]) -> None:
    if len(keys) > 1:
        raise errors.InvalidIdempotencyKey("Send one Idempotency-Key, not several.")
    for key in keys:
        printable = all(" " <= char <= "~" for char in key)
        if not 1 <= len(key) <= _KEY_LENGTH or not printable or not key.strip():
            raise errors.InvalidIdempotencyKey


def header_values(event: Mapping[str, Any], name: str) -> list[str]:
    """Every value that was sent under this name (in lower case)."""
    several = event.get("multiValueHeaders") or {}
    found = [value for sent, values in several.items() if sent.lower() == name for value in values]
    if found:
        return found
    single = event.get("headers") or {}
    return [value for sent, value in single.items() if sent.lower() == name]


def query_errors(event: Mapping[str, Any], known: Iterable[str]) -> list[dict[str, Any]]:
    """What is wrong with the names and texts of the query: for `errors.InvalidRequest`."""
    sent = {**(event.get("queryStringParameters") or {})}
    sent.update(event.get("multiValueQueryStringParameters") or {})
    found = []
    for name, values in sorted(sent.items()):
        if name not in known:
            found.append(_query_error(name, "There is no such parameter.", "extra_forbidden"))
        elif not all(is_storable(value) for value in ([values] if values is None else values)):
            found.append(_query_error(name, "This is not text.", "string_type"))
    return found


def _query_error(name: str, message: str, type_: str) -> dict[str, Any]:
    return {"loc": ["query", name], "msg": message, "type": type_}


def parse_json(text: str) -> Any:
    """The object that the text says. Raises `errors.MalformedRequest`, `InvalidRequest`.

    Refuses what JSON allows and no two readers agree on, such as a key that is there twice, and
    what Python's reader allows beyond JSON, such as NaN.
    """
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise errors.MalformedRequest(
            f"The body is not valid JSON: {error.msg}, {where}."
        ) from error
    except RecursionError as error:
        raise _too_deep() from error
    except ValueError as error:
        # Python reads no integer of more than a few thousand digits.
        raise errors.MalformedRequest(_NUMBER) from error
    if not isinstance(value, dict):
        raise errors.InvalidRequest(
            errors=[{"loc": ["body"], "msg": "The body has to be an object.", "type": "dict_type"}]
        )
    for leaf in _leaves(value):
        _check_leaf(leaf)
    return value


_NUMBER = "The body has a number that is too large to be kept as it is."


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise errors.MalformedRequest(f"The body has {name[:100]!a} twice in one object.")
        found[name] = value
    return found


def _no_constant(name: str) -> None:
    raise errors.MalformedRequest(f"The body is not valid JSON: {name} is not a number of JSON.")


def _too_deep() -> errors.MalformedRequest:
    return errors.MalformedRequest(f"The body may be nested {MAX_DEPTH} deep at the most.")


def _leaves(value: Any) -> Iterator[Any]:
    """Every text, number and name in a value; without recursion, whose depth is not ours to say."""
    waiting = [(value, 1)]
    while waiting:
        value, depth = waiting.pop()
        if isinstance(value, dict):
            yield from value
            children: Iterable[Any] = value.values()
        elif isinstance(value, list):
            children = value
        else:
            yield value
            continue
        if depth > MAX_DEPTH:
            raise _too_deep()
        waiting += [(child, depth + 1) for child in children]


def _check_leaf(value: Any) -> None:
    if isinstance(value, str):
        if not is_storable(value):
            raise errors.MalformedRequest(
                "The body has text that cannot be kept: NUL, or half of a surrogate pair."
            )
    elif isinstance(value, float):
        if value in (float("inf"), float("-inf")):
            raise errors.MalformedRequest(_NUMBER)
    elif isinstance(value, int) and not -(2**63) <= value < 2**64:
        raise errors.MalformedRequest(_NUMBER)


def is_storable(text: str | None) -> bool:
    """Whether Postgres can keep it as text."""
    if text is None or "\0" in text:
        return False
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True

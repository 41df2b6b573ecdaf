"""The API function in this process, every answer held to what the API says of itself."""

import dataclasses
import functools
import json
import re
import uuid
from typing import Any, cast

import jsonschema
import sqlalchemy as sa

from functions.api import handler, openapi, resources
from jobplatform import client_store, jobs, problems
from tests.conftest import new_client
from tests.helpers import events
from tests.helpers.platform import Context

MOST_BYTES = 256_000
_PROBLEM_KEYS = ["type", "title", "status", "detail", "code", "instance"]
_OURS = "the key of our client"
_METHODS = {"get", "post", "put", "patch", "delete"}


@dataclasses.dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)

    @property
    def code(self) -> str | None:
        """Of a problem."""
        return cast(str | None, self.json.get("code"))


class Api:
    """Calls the function as API Gateway does; `key` is that of a client named acme."""

    def __init__(self, engine: sa.Engine) -> None:
        self.engine = engine
        self.client_id = new_client(engine, "acme")
        self.key = self.new_key(self.client_id)

    def new_client(self, name: str) -> str:
        """Another client; answers a key of it."""
        return self.new_key(new_client(self.engine, name))

    def new_key(self, client_id: uuid.UUID, *, plan: str = "pro") -> str:
        key = f"key-{uuid.uuid4()}"
        with self.engine.begin() as conn:
            client_store.add_key(
                conn,
                client_id=client_id,
                key_sha256=client_store.key_hash(key),
                api_key_id=key,
                plan=plan,
            )
        return key

    def submit(
        self, template: str = "flights", *, idempotency_key: str | None = None, **body: Any
    ) -> Answer:
        """Submits with the body's further fields; see `call` for `key` and `headers`."""
        key = body.pop("key", self.key)
        return self.call(
            "POST",
            "/jobs",
            body={"template_name": template, **body},
            headers={"Idempotency-Key": idempotency_key},
            key=key,
        )

    def call(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        headers: dict[str, Any] | None = None,
        query: dict[str, Any] | None = None,
        key: str | None = _OURS,
        base64: bool = False,
    ) -> Answer:
        """`body`: text as it is, everything else as JSON."""
        if body is not None and not isinstance(body, str):
            body = json.dumps(body)
        sent = {"Content-Type": "application/json"} if method == "POST" else {}
        return self.send(
            events.api_request(
                method,
                path,
                body=body,
                headers={**sent, **(headers or {})},
                query=query,
                key=self.key if key is _OURS else key,
                base64=base64,
            )
        )

    def send(self, event: dict[str, Any]) -> Answer:
        """The answer to a whole event, checked."""
        raw = handler.lambda_handler(event, cast(Any, Context()))
        answer = Answer(
            raw["statusCode"],
            {name.lower(): ",".join(values) for name, values in raw["multiValueHeaders"].items()},
            raw["body"],
        )
        check(event, answer)
        return answer


def check(event: dict[str, Any], answer: Answer) -> None:
    """Every answer is one that the OpenAPI document describes; every error is a problem."""
    path = event["path"].rstrip("/")
    # What a runtime does with the answer; a lone surrogate would stop it here.
    json.dumps(answer.text, ensure_ascii=False).encode()
    if not path.startswith("/docs"):
        assert len(answer.text.encode()) < MOST_BYTES
    if answer.status >= 400 and path != "/health":
        check_problem(event, answer)
    operation = _operation(event["httpMethod"].lower(), path)
    if operation is None:
        return
    described = operation["responses"].get(str(answer.status))
    assert described, f"{event['httpMethod']} {path} answered {answer.status}: {answer.text[:500]}"
    headers = {name.lower() for name in described.get("headers", {})}
    assert set(answer.headers) <= {"content-type", "cache-control", *headers}
    media = described["content"][answer.headers["content-type"]]
    _validator(json.dumps(media["schema"])).validate(answer.json)


def check_problem(event: dict[str, Any], answer: Answer) -> None:
    body = answer.json
    assert answer.headers["content-type"] == problems.CONTENT_TYPE
    assert list(body)[:6] == _PROBLEM_KEYS
    assert set(body) <= {*_PROBLEM_KEYS, "errors"}
    assert body["status"] == answer.status
    assert body["type"] == problems.TYPE_BASE + body["code"]
    assert body["instance"] == event["requestContext"]["requestId"]
    assert problems.codes()[body["code"]][0] == answer.status
    for error in body.get("errors", []):
        assert set(error) == {"loc", "msg", "type"}
    assert ("retry-after" in answer.headers) == (
        body["code"] in {"too_many_queued_jobs", "service_unavailable", "submit_in_progress"}
        or (body["code"] == "result_not_ready" and "not there yet" in body["detail"])
    )
    assert not re.search(r"Traceback|SELECT |INSERT |127\.0\.0\.1|pydantic", answer.text)


@functools.cache
def document() -> dict[str, Any]:
    return openapi.document(handler.app, "0.0.0")


def operations() -> list[tuple[str, str, dict[str, Any]]]:
    """Method, path and description of everything in the OpenAPI document."""
    return [
        (method, path, operation)
        for path, item in document()["paths"].items()
        for method, operation in item.items()
        if method in _METHODS
    ]


def _operation(method: str, path: str) -> dict[str, Any] | None:
    for known, template, operation in operations():
        pattern = re.sub(r"\{\w+\}", "[^/]+", template)
        if known == method and re.fullmatch(pattern, path):
            return operation
    return None


@functools.cache
def _validator(schema: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(
        {**json.loads(schema), "components": document()["components"]},
        format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER,
    )


def forget_callers() -> None:
    """What the function does by itself half a minute later."""
    resources._callers.clear()


def count_jobs(engine: sa.Engine) -> int:
    with engine.begin() as conn:
        return int(conn.exec_driver_sql("SELECT count(*) FROM jobplatform.jobs").scalar() or 0)


def status_of(answer: Answer) -> jobs.JobStatus:
    return jobs.JobStatus(answer.json["status"])

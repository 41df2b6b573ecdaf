"""The AWS side of a deployed platform: moto's API Gateway and CloudFormation, a Lambda over HTTP.

Moto runs Lambda functions in Docker, so the admin function is a plain one here, behind the real
HTTP calls of boto3's Lambda client. It keeps clients and keys as the platform's does.
"""

import base64
import functools
import json
from collections.abc import Callable
from typing import Any

import boto3
import botocore.config

from jobclient.admin import Admin
from tests.unit.jobclient.scripted_server import Reply, ScriptedServer, Seen

REGION = "eu-central-1"
API_URL = f"https://a1b2c3.execute-api.{REGION}.amazonaws.com/prod/"
FUNCTIONS = ("admin", "api", "worker", "dispatcher", "purge")


@functools.cache
def session() -> boto3.Session:
    """One for all tests: it keeps what it has read of AWS's service descriptions, 10 MB of JSON."""
    return boto3.Session(aws_access_key_id="test", aws_secret_access_key="test", region_name=REGION)


class Refusal(Exception):
    """What the admin function answers as an error."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class AdminPlatform:
    """A platform that keeps what the commands did, and breaks where the test says."""

    asked_for: list[dict[str, Any]]
    """Arguments of the AWS sessions that command lines made."""

    def __init__(self, server: ScriptedServer) -> None:
        self.clients: dict[str, dict[str, Any]] = {}
        self.commands: list[tuple[str, dict[str, Any]]] = []
        self.events: list[tuple[str, Any]] = []
        self.answers: dict[str, Any] = {}
        """Results of the commands that this platform does not play."""
        self.breaks: dict[str, Reply | Callable[[], Reply]] = {}
        """Answers of the Lambda service instead of the command's own."""
        self.session = session()
        self.apigateway = self.session.client("apigateway")
        self.plan_ids = {
            name: self.apigateway.create_usage_plan(name=name)["id"] for name in ("basic", "pro")
        }
        outputs = {
            "ApiUrl": API_URL,
            "UsagePlanBasicId": self.plan_ids["basic"],
            "UsagePlanProId": self.plan_ids["pro"],
            **{f"{name.capitalize()}FunctionName": f"function-{name}" for name in FUNCTIONS},
        }
        self.session.client("cloudformation").create_stack(
            StackName="JobPlatformService",
            TemplateBody=json.dumps(
                {
                    "Resources": {"Queue": {"Type": "AWS::SQS::Queue"}},
                    "Outputs": {key: {"Value": value} for key, value in outputs.items()},
                }
            ),
        )
        for name in FUNCTIONS:
            server.on(
                "POST",
                f"/2015-03-31/functions/function-{name}/invocations",
                lambda seen, name=name: self._invoke(name, seen),
            )
        self.lambda_url = server.url

    def admin(self, **changes: Any) -> Admin:
        lambda_ = self.session.client(
            "lambda",
            endpoint_url=self.lambda_url,
            config=botocore.config.Config(retries={"total_max_attempts": 1}),
        )
        return Admin(**{"session": self.session, "lambda_": lambda_} | changes)

    def gateway_keys(self) -> dict[str, str]:
        """API Gateway's keys: id to value."""
        items = self.apigateway.get_api_keys(includeValues=True)["items"]
        return {item["id"]: item["value"] for item in items}

    def plan_of(self, api_key_id: str) -> list[str]:
        return [
            name
            for name, plan_id in self.plan_ids.items()
            for key in self.apigateway.get_usage_plan_keys(usagePlanId=plan_id)["items"]
            if key["id"] == api_key_id
        ]

    def keys(self, name: str) -> list[dict[str, Any]]:
        (client,) = [c for c in self.clients.values() if c["name"] == name]
        return client["keys"]

    def _invoke(self, function: str, seen: Seen) -> Reply:
        event = seen.json
        self.events.append((function, event))
        if function != "admin":
            return Reply(body=self.answers.get(function))
        command, arguments = event["command"], event["arguments"]
        self.commands.append((command, arguments))
        before = self.breaks.get(command)
        if isinstance(before, Reply):
            return before
        try:
            answer = {"result": self._run(command, arguments)}
        except Refusal as refusal:
            answer = {"error": {"code": refusal.code, "message": str(refusal)}}
        return before() if before else Reply(body=answer)

    def _run(self, command: str, arguments: dict[str, Any]) -> Any:
        play = getattr(self, f"_play_{command}", None)
        if play:
            return play(**arguments)
        if command in self.answers:
            return self.answers[command]
        raise Refusal("unknown_command", f"There is no command {command}")

    def _play_create_client(self, name: str) -> Any:
        if any(c["name"] == name and not c["removed_at"] for c in self.clients.values()):
            raise Refusal("client_exists", f"There is a client {name} already")
        client_id = f"client-{len(self.clients) + 1}"
        self.clients[client_id] = {
            "client_id": client_id,
            "name": name,
            "created_at": "2026-01-02T03:04:05Z",
            "removed_at": None,
            "keys": [],
        }
        return {"client_id": client_id, "name": name, "created_at": "2026-01-02T03:04:05Z"}

    def _play_list_clients(self) -> Any:
        return [
            {**client, "keys": [{**key, "new_field": 1} for key in client["keys"]]}
            for client in self.clients.values()
        ]

    def _play_add_key(self, client: str, plan: str, key_sha256: str, api_key_id: str) -> Any:
        self.clients[client]["keys"].append(
            {
                "api_key_id": api_key_id,
                "plan": plan,
                "key_sha256": key_sha256,
                "created_at": "2026-01-02T03:04:05Z",
                "revoked_at": None,
            }
        )
        return {}

    def _play_revoke_key(self, api_key_id: str) -> Any:
        for client in self.clients.values():
            for key in client["keys"]:
                if key["api_key_id"] == api_key_id and not key["revoked_at"]:
                    key["revoked_at"] = "2026-01-03T00:00:00Z"
                    return {}
        raise Refusal("key_not_found", f"There is no key {api_key_id}")

    def _play_remove_client(self, client: str) -> Any:
        found = self.clients[client]
        found["removed_at"] = "2026-01-03T00:00:00Z"
        for key in found["keys"]:
            key["revoked_at"] = key["revoked_at"] or "2026-01-03T00:00:00Z"
        return {"api_key_ids": [key["api_key_id"] for key in found["keys"]]}


def crash(error_type: str, message: str, log: str = "") -> Reply:
    """How Lambda answers when the function itself ended with an error."""
    return Reply(
        body={"errorType": error_type, "errorMessage": message, "stackTrace": []},
        headers={
            "X-Amz-Function-Error": "Unhandled",
            "X-Amz-Log-Result": base64.b64encode(log.encode()).decode(),
        },
    )

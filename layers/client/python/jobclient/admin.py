"""The operator's side: clients, keys, jobs and dead letters, with the operator's AWS credentials.

API Gateway holds the keys and counts requests, the platform's admin function holds who they belong
to. `Admin` keeps both in step: what it cannot finish it takes back, and says what happened.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import re
import secrets
import string
from base64 import b64decode
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

import boto3
import botocore.config
import botocore.exceptions

from jobclient import errors

if TYPE_CHECKING:
    from mypy_boto3_apigateway import APIGatewayClient
    from mypy_boto3_cloudformation import CloudFormationClient
    from mypy_boto3_lambda import LambdaClient

DEFAULT_STACK = "JobPlatformService"

# API Gateway takes 20 to 128 characters; letters and digits alone survive every shell and header.
_KEY_ALPHABET = string.ascii_letters + string.digits
_KEY_LENGTH = 43  # 256 bits

# A repeated invocation would do its work twice, so nothing here is retried; the longest function
# runs for 15 minutes.
_LAMBDA_CONFIG = botocore.config.Config(
    retries={"total_max_attempts": 1}, read_timeout=930, connect_timeout=10, tcp_keepalive=True
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class NewKey:
    """A key just made; `api_key` is kept nowhere, so this is the only time it can be read."""

    client_id: str
    plan: str
    api_key_id: str
    api_key: str = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class KeyInfo:
    """A key as the platform knows it."""

    api_key_id: str
    plan: str
    created_at: datetime | None = None
    revoked_at: datetime | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClientInfo:
    """A client and its keys, revoked ones included."""

    client_id: str
    name: str
    created_at: datetime | None = None
    removed_at: datetime | None = None
    keys: Sequence[KeyInfo] = ()

    @property
    def live_keys(self) -> list[KeyInfo]:
        return [key for key in self.keys if key.revoked_at is None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rotation:
    """What a rotation did: the new key, and the old ones that are revoked or still work."""

    new_key: NewKey
    revoked: Sequence[str]
    still_valid: Sequence[str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Invocation:
    """A function's answer, and the end of its log where Lambda hands it over."""

    payload: Any
    log: str | None = None


class Admin:
    """The operator's commands on one deployed platform.

    AWS clients come from `session` (default: boto3's own search for credentials, region and
    `AWS_ENDPOINT_URL`), or are given one by one.
    """

    def __init__(
        self,
        stack: str = DEFAULT_STACK,
        *,
        session: boto3.Session | None = None,
        endpoint_url: str | None = None,
        apigateway: "APIGatewayClient | None" = None,
        cloudformation: "CloudFormationClient | None" = None,
        lambda_: "LambdaClient | None" = None,
    ) -> None:
        self.stack = stack
        with _aws_errors():
            session = session or boto3.Session()
            self._apigateway = apigateway or session.client("apigateway", endpoint_url=endpoint_url)
            self._cloudformation = cloudformation or session.client(
                "cloudformation", endpoint_url=endpoint_url
            )
            self._lambda = lambda_ or session.client(
                "lambda", endpoint_url=endpoint_url, config=_LAMBDA_CONFIG
            )

    @classmethod
    def from_profile(
        cls,
        stack: str = DEFAULT_STACK,
        *,
        profile: str | None = None,
        region: str | None = None,
    ) -> Self:
        """An `Admin` with the credentials of a named AWS profile."""
        with _aws_errors():
            session = boto3.Session(profile_name=profile, region_name=region)
        return cls(stack, session=session)

    # What the stack says of itself

    @functools.cached_property
    def outputs(self) -> Mapping[str, str]:
        """The outputs of the stack."""
        with _aws_errors():
            try:
                found = self._cloudformation.describe_stacks(StackName=self.stack)["Stacks"]
            except botocore.exceptions.ClientError as error:
                if error.response["Error"]["Code"] != "ValidationError":
                    raise
                found = []
        if not found:
            region = self._cloudformation.meta.region_name
            raise errors.StackNotFound(
                f"There is no stack {self.stack} in {region}. Deploy it first, or name another one "
                "with --stack, --region or --profile."
            )
        return {
            output["OutputKey"]: output["OutputValue"] for output in found[0].get("Outputs", [])
        }

    @property
    def api_url(self) -> str:
        """The address of the API, as it can be reached from here."""
        url = self._output("ApiUrl")
        # An emulator may state the address that AWS would give, which leads nowhere.
        on_aws = re.fullmatch(r"https://(\w+)\.execute-api\.[\w.-]+\.amazonaws\.com/(\w+)/?", url)
        endpoint = self._apigateway.meta.endpoint_url
        if on_aws is None or re.search(r"\.amazonaws\.com(\.cn)?$", urlsplit(endpoint).netloc):
            return url
        api_id, stage = on_aws.groups()
        return f"{endpoint.rstrip('/')}/restapis/{api_id}/{stage}/_user_request_"

    @property
    def plans(self) -> list[str]:
        """The names of the usage plans, in lower case as in `plans.py`."""
        return _named(self.outputs, "UsagePlan", "Id")

    @property
    def functions(self) -> list[str]:
        """The functions that `invoke` knows by their short names."""
        return _named(self.outputs, "", "FunctionName")

    # Clients and their keys

    def create_client(self, name: str, plan: str = "basic") -> NewKey:
        """Creates a client with a first key on the plan.

        On failure nothing of it stays, or `StepFailed` says what.
        """
        usage_plan_id = self._usage_plan_id(plan)
        with _Steps() as steps:
            steps.start(f"create the client {name}")
            client_id = str(self.command("create_client", name=name)["client_id"])
            steps.done(
                f"client {name} ({client_id})",
                undo=lambda: self.command("remove_client", client=client_id),
            )
            return self._make_key(steps, client_id, name, plan, usage_plan_id)

    def add_key(self, client: str, plan: str = "basic") -> NewKey:
        """Gives a client (by name or id) one more key; fails as `create_client` does."""
        usage_plan_id = self._usage_plan_id(plan)
        owner = self.client(client)
        with _Steps() as steps:
            return self._make_key(steps, owner.client_id, owner.name, plan, usage_plan_id)

    def rotate_key(
        self,
        client: str,
        *,
        plan: str | None = None,
        api_key_id: str | None = None,
        grace: bool = False,
        announce: Callable[[NewKey], None] = lambda new_key: None,
    ) -> Rotation:
        """Replaces the client's keys, or the one named, by a new one on the same plan or `plan`.

        `announce` gets the new key before an old one is revoked, so that a failure on the way
        cannot lose it. With `grace` the old keys go on working until `revoke_key`.
        """
        owner = self.client(client)
        old = [key for key in owner.live_keys if api_key_id in (None, key.api_key_id)]
        if not old:
            which = f"key {api_key_id}" if api_key_id else "key"
            raise errors.CommandRefused(
                "key_not_found", f"{owner.name} has no {which} that could be rotated; add one"
            )
        old_plans = {key.plan for key in old}
        if plan is None and len(old_plans) > 1:
            raise errors.CommandRefused(
                "plan_not_clear",
                f"The keys of {owner.name} are on several plans ({', '.join(sorted(old_plans))}): "
                "name the plan of the new key, or the one key to rotate",
            )
        new_key = self.add_key(owner.client_id, plan or old_plans.pop())
        announce(new_key)
        old_ids = [key.api_key_id for key in old]
        if grace:
            return Rotation(new_key=new_key, revoked=(), still_valid=old_ids)
        for old_id in old_ids:
            self._revoke(old_id)
        return Rotation(new_key=new_key, revoked=old_ids, still_valid=())

    def revoke_key(self, api_key_id: str) -> None:
        """Ends a key at once; can be repeated after a failure."""
        # API Gateway may hold keys of other APIs: only those that the platform knows are touched.
        for client in self.list_clients():
            for key in client.keys:
                if key.api_key_id == api_key_id:
                    self._revoke(api_key_id, recorded=key.revoked_at is None)
                    return
        raise errors.CommandRefused("key_not_found", f"No client has a key with id {api_key_id}")

    def list_clients(self) -> list[ClientInfo]:
        return [
            ClientInfo(
                client_id=str(item["client_id"]),
                name=str(item["name"]),
                created_at=_time(item.get("created_at")),
                removed_at=_time(item.get("removed_at")),
                keys=[
                    KeyInfo(
                        api_key_id=str(key["api_key_id"]),
                        plan=str(key["plan"]),
                        created_at=_time(key.get("created_at")),
                        revoked_at=_time(key.get("revoked_at")),
                    )
                    for key in item.get("keys", [])
                ],
            )
            for item in self.command("list_clients")
        ]

    def client(self, name_or_id: str) -> ClientInfo:
        """One client; a removed one only by its id."""
        found = [
            client
            for client in self.list_clients()
            if client.client_id == name_or_id
            or (client.name == name_or_id and client.removed_at is None)
        ]
        if len(found) != 1:
            raise errors.CommandRefused(
                "client_not_found",
                f"There is no client {name_or_id}"
                if not found
                else f"{name_or_id} is the name of one client and the id of another: give the id",
            )
        return found[0]

    def remove_client(self, name_or_id: str) -> ClientInfo:
        """Ends the client's keys, then the client; its jobs and results go with the next purge.

        Can be repeated after a failure.
        """
        client = self.client(name_or_id)
        for key in client.keys:
            self._delete_api_key(key.api_key_id)
        if client.removed_at is None:
            removed = self.command("remove_client", client=client.client_id)
            # A key made since the list was read.
            for api_key_id in set(removed["api_key_ids"]) - {key.api_key_id for key in client.keys}:
                self._delete_api_key(api_key_id)
        return client

    # Jobs and dead letters

    def list_jobs(
        self,
        *,
        status: str | None = None,
        client: str | None = None,
        stuck: bool = False,
        limit: int = 50,
    ) -> Any:
        """Jobs of every client; `stuck`: only those that wait or run longer than they should."""
        return self.command("list_jobs", status=status, client=client, stuck=stuck, limit=limit)

    def explain_job(self, job_id: str) -> Any:
        """A job with its attempts, causes and dead letters."""
        return self.command("explain_job", job_id=job_id)

    def retry_job(self, job_id: str) -> Any:
        return self.command("retry_job", job_id=job_id)

    def cancel_job(self, job_id: str) -> Any:
        return self.command("cancel_job", job_id=job_id)

    def list_dead_letters(self) -> Any:
        return self.command("list_dead_letters")

    def redrive_dead_letters(self) -> Any:
        return self.command("redrive_dead_letters")

    def drop_dead_letters(self) -> Any:
        return self.command("drop_dead_letters")

    def purge(self, *, dry_run: bool) -> Any:
        return self.command("purge", dry_run=dry_run)

    # Functions

    def command(self, command: str, **arguments: object) -> Any:
        """Runs a command of the admin function; arguments that are None are left out."""
        given = {name: value for name, value in arguments.items() if value is not None}
        answer = self.invoke("admin", {"command": command, "arguments": given}).payload
        if not isinstance(answer, Mapping) or not ("result" in answer or "error" in answer):
            raise errors.FunctionFailed(
                self._output("AdminFunctionName"),
                error_type="UnexpectedAnswer",
                message=f"{json.dumps(answer)[:200]}; is it of the same version as this client?",
            )
        if error := answer.get("error"):
            raise errors.CommandRefused(str(error.get("code")), str(error.get("message")))
        return answer["result"]

    def invoke(self, function: str, event: object) -> Invocation:
        """Invokes a function by its short name and waits for the answer; never repeats it."""
        name = self._function_name(function)
        with _aws_errors():
            try:
                answer = self._lambda.invoke(
                    FunctionName=name, Payload=json.dumps(event).encode(), LogType="Tail"
                )
                body = answer["Payload"].read()
            except (
                botocore.exceptions.ReadTimeoutError,
                botocore.exceptions.ConnectionClosedError,
                botocore.exceptions.ResponseStreamingError,
            ) as error:
                raise errors.AwsFailed(
                    f"{error} The function may have done its work all the same: look before you "
                    "repeat the command."
                ) from error
        log_result = answer.get("LogResult")
        log = b64decode(log_result).decode(errors="replace") if log_result else None
        try:
            payload = json.loads(body) if body else None
        except ValueError:
            payload = body.decode(errors="replace")
        if answer.get("FunctionError"):
            details: Mapping[str, Any] = payload if isinstance(payload, Mapping) else {}
            raise errors.FunctionFailed(
                name,
                error_type=str(details.get("errorType") or answer["FunctionError"]),
                message=str(details.get("errorMessage") or payload),
                log=log,
            )
        return Invocation(payload=payload, log=log)

    # Parts of the above

    def _make_key(
        self, steps: "_Steps", client_id: str, name: str, plan: str, usage_plan_id: str
    ) -> NewKey:
        value = "".join(secrets.choice(_KEY_ALPHABET) for _ in range(_KEY_LENGTH))

        steps.start(f"make an API Gateway key for {name}")
        with _aws_errors():
            api_key_id = self._apigateway.create_api_key(
                name=f"{name}-{secrets.token_hex(4)}",
                description=f"Async Job Platform, stack {self.stack}, client {client_id}",
                enabled=True,
                value=value,
            )["id"]
        steps.done(f"API Gateway key {api_key_id}", undo=lambda: self._delete_api_key(api_key_id))

        steps.start(f"bind the key to the plan {plan}")
        with _aws_errors():
            self._apigateway.create_usage_plan_key(
                usagePlanId=usage_plan_id, keyId=api_key_id, keyType="API_KEY"
            )

        steps.start(f"record the key of {name}")
        try:
            self.command(
                "add_key",
                client=client_id,
                plan=plan,
                key_sha256=hashlib.sha256(value.encode()).hexdigest(),
                api_key_id=api_key_id,
            )
        except errors.CommandRefused:
            raise
        except errors.AdminError:
            # The answer is lost, the record may be there.
            steps.done("the record of the key", undo=lambda: self._forget_key(api_key_id))
            raise
        return NewKey(client_id=client_id, plan=plan, api_key_id=api_key_id, api_key=value)

    def _revoke(self, api_key_id: str, *, recorded: bool = True) -> None:
        # The door first: if the second step fails, the key is shut out and the command can be
        # repeated.
        self._delete_api_key(api_key_id)
        if recorded:
            self.command("revoke_key", api_key_id=api_key_id)

    def _forget_key(self, api_key_id: str) -> None:
        with contextlib.suppress(errors.CommandRefused):  # refused: it had not been recorded
            self.command("revoke_key", api_key_id=api_key_id)

    def _delete_api_key(self, api_key_id: str) -> None:
        with (
            _aws_errors(),
            contextlib.suppress(self._apigateway.exceptions.NotFoundException),
        ):
            self._apigateway.delete_api_key(apiKey=api_key_id)

    def _usage_plan_id(self, plan: str) -> str:
        if plan not in self.plans:
            raise errors.CommandRefused(
                "plan_not_found", f"There is no plan {plan}; there are: {', '.join(self.plans)}"
            )
        return self._output(f"UsagePlan{plan.capitalize()}Id")

    def _function_name(self, function: str) -> str:
        if function not in self.functions:
            raise errors.CommandRefused(
                "function_not_found",
                f"There is no function {function}; there are: {', '.join(self.functions)}",
            )
        return self._output(f"{function.capitalize()}FunctionName")

    def _output(self, key: str) -> str:
        try:
            return self.outputs[key]
        except KeyError:
            raise errors.StackNotFound(
                f"The stack {self.stack} has no output {key}: is it the platform's service stack, "
                "and of this version?"
            ) from None


class _Steps:
    """Takes back the steps done when a later one fails, last one first."""

    def __init__(self) -> None:
        self._step = ""
        self._done: list[tuple[str, Callable[[], object]]] = []

    def start(self, step: str) -> None:
        self._step = step

    def done(self, what: str, *, undo: Callable[[], object]) -> None:
        self._done.append((what, undo))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None or not self._done:
            return
        undone, left = [], []
        for what, undo in reversed(self._done):
            try:
                undo()
            except errors.AdminError as failure:
                left.append(f"{what} ({failure})")
            else:
                undone.append(what)
        if isinstance(error, errors.AdminError | KeyboardInterrupt):
            cause = str(error) or "interrupted"
            raise errors.StepFailed(self._step, cause, undone=undone, left=left) from error
        error.add_note(f"undone: {undone}; left behind: {left}")


@contextlib.contextmanager
def _aws_errors() -> Iterator[None]:
    """Turns the errors of boto3 into `AwsFailed`."""
    try:
        yield
    except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError) as error:
        raise errors.AwsFailed(_explain(error)) from error
    except ValueError as error:  # an AWS_ENDPOINT_URL that is no URL
        raise errors.AwsFailed(str(error)) from error


def _time(value: str | None) -> datetime | None:
    return datetime.fromisoformat(value) if value else None


def _named(outputs: Mapping[str, str], prefix: str, suffix: str) -> list[str]:
    return sorted(
        key[len(prefix) : -len(suffix)].lower()
        for key in outputs
        if key.startswith(prefix) and key.endswith(suffix)
    )


def _explain(error: Exception) -> str:
    """What a person can do about an error of AWS or of the way to it."""
    match error:
        case botocore.exceptions.ClientError():
            details = error.response["Error"]
            return f"AWS refused {error.operation_name}: {details['Code']}: {details['Message']}"
        case (
            botocore.exceptions.NoCredentialsError() | botocore.exceptions.PartialCredentialsError()
        ):
            return (
                "There are no AWS credentials: log in, or set AWS_PROFILE or AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY (an emulator takes any)."
            )
        case botocore.exceptions.NoRegionError():
            return "There is no AWS region: give --region or set AWS_DEFAULT_REGION."
        case botocore.exceptions.EndpointConnectionError():
            return f"{error} Is AWS_ENDPOINT_URL right, and does it run?"
        case _:
            return str(error)

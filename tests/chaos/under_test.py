"""The deployed platform of a run: how to reach, invoke, change and look into it."""

import contextlib
import dataclasses
import io
import json
import pathlib
import threading
import urllib.request
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import botocore.config
import pg8000.native

from infra.local import postgres
from infra.local.errors import LocalError
from infra.local.up import LocalTarget
from tests.chaos import expected, plan, protections

LEASE_SECONDS = 4
# So many that a job which is hit again and again is done all the same: every second attempt of a
# slow one is lost to something.
RETRIES = ("PT0.5S", *["PT1S"] * 3, *["PT2S"] * 3, *["PT3S"] * 8)
SETTINGS = {
    "JOBS_LEASE": f"PT{LEASE_SECONDS}S",
    "JOBS_HEARTBEAT": "PT1S",
    "JOBS_RETRY_DELAYS": json.dumps(RETRIES),
    "JOBS_RING_AGAIN_AFTER": "PT5S",
    "JOBS_RING_AHEAD": "PT5S",
    "JOBS_WORKER_LIFE": "PT90S",
    "RESULTS_UPLOAD_TTL": "PT1S",
    "WORKER_DRAIN_FOR": "PT4S",
    "WORKER_PART_BYTES": str(5 * 2**20),
}
_FUNCTIONS = ("Api", "Worker", "Dispatcher", "Purge", "Admin")
_NO_RETRIES = botocore.config.Config(
    retries={"total_max_attempts": 1}, read_timeout=70, connect_timeout=5
)


@dataclasses.dataclass(frozen=True)
class Tenant:
    name: str
    client_id: str
    api_key: str


class UnderTest:
    """A running target with three clients, and the templates of this package in its layer."""

    def __init__(self, target: LocalTarget, faults_file: pathlib.Path) -> None:
        self.target = target
        self.faults_file = faults_file
        self.api_url = target.api_url
        outputs = target.outputs
        self.function_names = {name.lower(): outputs[f"{name}FunctionName"] for name in _FUNCTIONS}
        self.bucket = outputs["ResultsBucketName"]
        self.queue_url = outputs["QueueUrl"]
        self.dead_letter_url = outputs["DeadLetterQueueUrl"]
        self.s3, self.sqs, self.events = (target.client(name) for name in ("s3", "sqs", "events"))
        emulator = target.state.ministack
        assert emulator is not None
        self.lambda_: Any = target.session().client(
            "lambda", endpoint_url=emulator.endpoint_url, config=_NO_RETRIES
        )
        self.admin = target.admin()
        made = {name: self.admin.create_client(name, "pro") for name in plan.CLIENTS}
        self.tenants = {
            name: Tenant(name, new.client_id, new.api_key) for name, new in made.items()
        }
        self._connections = threading.local()

    def invoke(self, function: str, event: Mapping[str, Any] | None = None) -> Any:
        """The function's answer; raises where it failed."""
        answer = self.lambda_.invoke(
            FunctionName=self.function_names[function], Payload=json.dumps(event or {}).encode()
        )
        payload = json.loads(answer["Payload"].read() or b"null")
        if "FunctionError" in answer:
            raise RuntimeError(f"{function}: {str(payload)[:500]}")
        return payload

    def sql(self, statement: str, **values: Any) -> list[Sequence[Any]]:
        """Runs a statement on the platform's own tables; connects anew after an outage."""
        for last in (False, True):
            try:
                return list(self._connection().run(statement, **values) or ())
            except (pg8000.native.InterfaceError, OSError):
                self._forget()
                if last:
                    raise
            except pg8000.native.DatabaseError as error:
                # Administrator's commands and crashes of other sessions; everything else is ours.
                if error.args[0].get("C", "")[:2] not in ("57", "08"):
                    raise
                self._forget()
                if last:
                    raise
        raise AssertionError("not reached")

    def _connection(self) -> pg8000.native.Connection:
        if getattr(self._connections, "value", None) is None:
            try:
                self._connections.value = postgres.connect(self.target.state.database_url)
            except LocalError as error:
                raise pg8000.native.InterfaceError(str(error)) from error
        connection: pg8000.native.Connection = self._connections.value
        return connection

    def _forget(self) -> None:
        with contextlib.suppress(Exception):
            self._connections.value.close()
        self._connections.value = None

    # Changes of what is deployed

    def add_templates(self) -> None:
        files = {
            f"python/templates/{file.name}": file.read_bytes()
            for file in sorted(expected.OWN_TEMPLATES.glob("*.py"))
        }
        self._change_layer("templates", lambda _: files)

    def take_out(self, removal: protections.Removal) -> None:
        """From now on the platform runs without this protection."""
        folder = "python/jobplatform/"

        def without(content: Mapping[str, bytes]) -> Mapping[str, bytes]:
            sources = {
                name.removeprefix(folder): data.decode()
                for name, data in content.items()
                if name.startswith(folder) and name.endswith(".py")
            }
            changed = protections.apply(removal, sources)
            return {folder + name: text.encode() for name, text in changed.items()}

        if removal.edits:
            self._change_layer("core", without)
        for statement in removal.statements:
            self.sql(statement)
        if not removal.dispatcher:
            for rule in self.events.list_rules()["Rules"]:
                if "Dispatcher" in rule["Name"]:
                    self.events.disable_rule(Name=rule["Name"])

    def _change_layer(self, name: str, change: Any) -> None:
        """Publishes a changed version of a layer and gives it to every function."""
        old = self._layer(name)
        with urllib.request.urlopen(old["Content"]["Location"]) as answer:
            content = dict(_unzip(answer.read()))
        for path, data in change(content).items():
            module = pathlib.PurePosixPath(path)
            # Its byte code would be taken as it is, whatever the source says.
            compiled = f"{module.parent}/__pycache__/{module.stem}."
            content = {file: old for file, old in content.items() if not file.startswith(compiled)}
            content[path] = data
        new = self.lambda_.publish_layer_version(
            LayerName=name, Description=old["Description"], Content={"ZipFile": _zip(content)}
        )
        for function in self.function_names.values():
            layers = self._layers(function)
            self.lambda_.update_function_configuration(
                FunctionName=function,
                Layers=[
                    new["LayerVersionArn"] if arn == old["LayerVersionArn"] else arn
                    for arn in layers
                ],
            )

    def _layer(self, name: str) -> dict[str, Any]:
        for arn in self._layers(self.function_names["worker"]):
            found: dict[str, Any] = self.lambda_.get_layer_version_by_arn(Arn=arn)
            if found.get("Description", "").startswith(name):
                return found
        raise LookupError(f"the worker has no layer {name}")

    def _layers(self, function: str) -> list[str]:
        found = self.lambda_.get_function_configuration(FunctionName=function)
        return [layer["Arn"] for layer in found["Layers"]]


def _unzip(data: bytes) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for name in archive.namelist():
            yield name, archive.read(name)


def _zip(content: Mapping[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return file.getvalue()

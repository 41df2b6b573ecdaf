"""Fault injection: named places where a test may kill, stop, delay or fail a function.

Off, a point is one comparison. `switch_on` does nothing without `FAULTS_FILE`, and refuses to work
against AWS itself: there is no setting that allows it. On, a JSON file says what happens where,
and may change while the functions run:

    {"seed": 7, "rules": [{"at": "submit.*", "action": "kill", "probability": 0.01},
                          {"at": "s3.UploadPart", "action": "error", "probability": 0.05}]}

What happens at the n-th visit of a point depends on the seed, the point and n alone. Calls of AWS
are points too, named after service and operation; there the actions of `_SERVICE_ACTIONS` exist.
Everything done is written to `<file>.log`, one JSON object a line.
"""

import contextlib
import fcntl
import fnmatch
import functools
import hashlib
import json
import os
import pathlib
import signal
import subprocess
import threading
import time
import urllib.parse
from collections.abc import Callable
from typing import Any, Literal

import pydantic

from jobplatform.observability import logger
from jobplatform.settings import FaultSettings


class InjectedFault(Exception):
    """Something broke, on purpose."""


class Rule(pydantic.BaseModel):
    """One kind of fault and where it happens, with a probability for each visit."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    at: str
    """Name of the point, or a pattern such as `submit.*`."""
    action: Literal[
        "kill", "raise", "delay", "pause", "error", "unreachable", "twice", "lost_answer"
    ]
    probability: float = pydantic.Field(gt=0, le=1)
    seconds: float = 0.0
    """How long `delay` and `pause` take; a pause stops the whole process, heartbeats included."""


class Script(pydantic.BaseModel):
    """The content of the file."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    seed: int = 0
    rules: tuple[Rule, ...] = ()

    def choose(self, point: str, visit: int) -> Rule | None:
        digest = hashlib.sha256(f"{self.seed}:{point}:{visit}".encode()).digest()
        draw = int.from_bytes(digest[:8], "big") / 2**64
        for rule in self.rules:
            if fnmatch.fnmatchcase(point, rule.at):
                if draw < rule.probability:
                    return rule
                draw -= rule.probability
        return None


def point(name: str) -> None:
    """Marks a place between two side effects; does nothing unless faults were switched on."""
    if _injector is not None:
        _injector.visit(name)


def watch(client: Any) -> None:
    """Makes the calls of a boto3 client points; does nothing unless faults were switched on."""
    if _injector is not None:
        client.meta.events.register("before-send", _injector.before_send)


def switch_on(settings: FaultSettings, *, function: str) -> None:
    """Called once at a function's cold start, before it makes its AWS clients."""
    global _injector
    if settings.file is None:
        return
    if _is_aws():
        logger.error("faults refused: this is AWS itself; remove FAULTS_FILE")
        return
    _injector = _Injector(pathlib.Path(settings.file), function)


def switch_off() -> None:
    global _injector
    _injector = None


def _is_aws() -> bool:
    import boto3

    host = urllib.parse.urlsplit(boto3.client("sqs").meta.endpoint_url).hostname or ""
    return host.endswith((".amazonaws.com", ".amazonaws.com.cn", ".api.aws"))


class _Injector:
    """Reads the script, counts the visits of all processes together, does what the script says."""

    def __init__(self, file: pathlib.Path, function: str) -> None:
        self._file = file
        self._function = function
        self._lock = threading.Lock()
        self._read_at = -1
        self._script = Script()

    def visit(self, name: str) -> None:
        rule = self._choose(name)
        if rule is not None:
            _ACTIONS[rule.action](rule)

    def before_send(self, request: Any, event_name: str, **_: Any) -> Any:
        """botocore's event: an answer that is returned is taken instead of the service's."""
        service, operation = event_name.split(".")[1:3]
        rule = self._choose(f"{service}.{operation}")
        if rule is None:
            return None
        if rule.action in _SERVICE_ACTIONS:
            return _SERVICE_ACTIONS[rule.action](request)
        _ACTIONS[rule.action](rule)
        return None

    def _choose(self, name: str) -> Rule | None:
        script = self._current()
        if not any(fnmatch.fnmatchcase(name, rule.at) for rule in script.rules):
            return None
        visit = self._count(name)
        rule = script.choose(name, visit)
        if rule is not None:
            self._note(name, visit, rule)
        return rule

    def _current(self) -> Script:
        """The script as the file has it now; without the file nothing happens."""
        try:
            changed = self._file.stat().st_mtime_ns
            with self._lock:
                if changed != self._read_at:
                    self._script = Script.model_validate_json(self._file.read_text())
                    self._read_at = changed
                return self._script
        except FileNotFoundError:
            return Script()

    def _count(self, name: str) -> int:
        path = self._file.with_name(f"{self._file.name}.{name}.visits")
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            visit = int(os.read(descriptor, 20) or b"0") + 1
            os.pwrite(descriptor, str(visit).encode(), 0)
            return visit
        finally:
            os.close(descriptor)

    def _note(self, name: str, visit: int, rule: Rule) -> None:
        line = json.dumps(
            {
                "at": time.time(),
                "function": self._function,
                "pid": os.getpid(),
                "point": name,
                "visit": visit,
                "action": rule.action,
            }
        )
        # One short write in append mode: lines of several processes do not mix.
        with self._file.with_name(f"{self._file.name}.log").open("a") as log:
            log.write(line + "\n")


_injector: _Injector | None = None


def _kill(rule: Rule) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _raise(rule: Rule) -> None:
    raise InjectedFault


def _delay(rule: Rule) -> None:
    time.sleep(rule.seconds)


def _pause(rule: Rule) -> None:
    """Stops every thread of the process, as a frozen machine would; a child wakes it up."""
    subprocess.Popen(
        ["/bin/sh", "-c", f"sleep {float(rule.seconds)}; kill -CONT {os.getpid()}"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.kill(os.getpid(), signal.SIGSTOP)


_ACTIONS: dict[str, Callable[[Rule], None]] = {
    "kill": _kill,
    "raise": _raise,
    "delay": _delay,
    "pause": _pause,
}


def _error(request: Any) -> Any:
    from botocore.awsrequest import AWSResponse, HeadersDict

    body = b"<Error><Code>SlowDown</Code><Message>Injected.</Message></Error>"
    headers: Any = HeadersDict()
    return AWSResponse(request.url, 503, headers, _Raw(body))


def _unreachable(request: Any) -> Any:
    from botocore.exceptions import EndpointConnectionError

    raise EndpointConnectionError(endpoint_url=request.url)


def _twice(request: Any) -> None:
    """The service gets the request twice; the caller sees the second answer."""
    _send(request)


def _lost_answer(request: Any) -> Any:
    """The service does its work, the caller sees a broken connection and tries again."""
    from botocore.exceptions import ConnectionClosedError

    _send(request)
    raise ConnectionClosedError(endpoint_url=request.url, request=request)


_SERVICE_ACTIONS: dict[str, Callable[[Any], Any]] = {
    "error": _error,
    "unreachable": _unreachable,
    "twice": _twice,
    "lost_answer": _lost_answer,
}


def _send(request: Any) -> None:
    with contextlib.suppress(Exception):
        _session().send(request)
    request.reset_stream()


@functools.cache
def _session() -> Any:
    from botocore.httpsession import URLLib3Session

    return URLLib3Session(timeout=10)


class _Raw:
    """As much of an HTTP response's body as botocore reads."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    def stream(self, **_: Any) -> Any:
        yield self._body

    def read(self, *_: Any, **__: Any) -> bytes:
        body, self._body = self._body, b""
        return body

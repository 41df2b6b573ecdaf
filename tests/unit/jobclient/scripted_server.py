"""A real HTTP server on 127.0.0.1 whose answers the test writes down beforehand."""

import contextlib
import dataclasses
import json
import re
import socket
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qsl, urlsplit


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seen:
    """A request as it arrived; header names in lower case."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reply:
    """An answer; `cut_at`: the connection ends after so many bytes of the body, `drop`: before."""

    status: int = 200
    body: Any = b""
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    cut_at: int | None = None
    drop: bool = False
    length: bool = True
    """Whether the answer says how long it is."""


Script = Reply | Callable[[Seen], Reply]


def problem(status: int, code: str, detail: str = "", **more: Any) -> Reply:
    headers = more.pop("headers", {})
    return Reply(
        status=status,
        headers={"content-type": "application/problem+json", **headers},
        body={
            "type": f"/docs/errors#{code}",
            "title": code.replace("_", " ").capitalize(),
            "status": status,
            "detail": detail or f"It is about {code}.",
            "instance": "request-1",
            "code": code,
            **more,
        },
    )


class ScriptedServer:
    """Answers each route with its replies in turn, the last one for ever."""

    def __init__(self) -> None:
        self.requests: list[Seen] = []
        self._scripts: dict[tuple[str, str], list[Script]] = {}
        self._lock = threading.Lock()
        script = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 10

            def handle_one_request(self) -> None:
                with contextlib.suppress(ConnectionError):  # the client has gone
                    super().handle_one_request()

            def do_GET(self) -> None:
                script._answer(self)

            do_POST = do_DELETE = do_GET

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def on(self, method: str, path: str, *replies: Script) -> None:
        self._scripts[method, path] = list(replies)

    def seen(self, method: str, path: str) -> list[Seen]:
        return [r for r in self.requests if (r.method, r.path) == (method, path)]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *args: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        url = urlsplit(handler.path)
        length = int(handler.headers.get("content-length") or 0)
        seen = Seen(
            method=handler.command,
            path=url.path,
            query=dict(parse_qsl(url.query, keep_blank_values=True)),
            headers={name.lower(): value for name, value in handler.headers.items()},
            body=handler.rfile.read(length),
        )
        with self._lock:
            self.requests.append(seen)
            replies = self._scripts.get((seen.method, seen.path))
            reply: Script
            if replies is None:
                reply = problem(404, "not_found", f"{seen.method} {seen.path} is not scripted")
            else:
                reply = replies.pop(0) if len(replies) > 1 else replies[0]
        if callable(reply):
            reply = reply(seen)
        if reply.drop:
            handler.connection.shutdown(socket.SHUT_RDWR)
            handler.close_connection = True
            return
        body = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
        handler.send_response(reply.status)
        for name, value in reply.headers.items():
            handler.send_header(name, value)
        if reply.length:
            handler.send_header("Content-Length", str(len(body)))
        else:
            handler.send_header("Connection", "close")
        handler.end_headers()
        if reply.cut_at is None:
            handler.wfile.write(body)
        else:
            handler.wfile.write(body[: reply.cut_at])
            handler.wfile.flush()
            handler.connection.shutdown(socket.SHUT_RDWR)
            handler.close_connection = True


def stored(
    content: bytes, *, etag: str = '"etag-1"', cut_after: int | None = None
) -> Callable[[Seen], Reply]:
    """An S3 object: knows Range and If-Match; `cut_after`: the connection breaks after so many."""

    def answer(seen: Seen) -> Reply:
        if seen.headers.get("if-match", etag) != etag:
            return Reply(status=412, body=b"<Error><Code>PreconditionFailed</Code></Error>")
        headers = {"ETag": etag, "Accept-Ranges": "bytes"}
        asked = re.fullmatch(r"bytes=(\d+)-", seen.headers.get("range", ""))
        if asked is None:
            return Reply(body=content, headers=headers, cut_at=cut_after)
        start = int(asked.group(1))
        if start >= len(content):
            return Reply(status=416, body=b"<Error><Code>InvalidRange</Code></Error>")
        headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        return Reply(status=206, body=content[start:], headers=headers, cut_at=cut_after)

    return answer

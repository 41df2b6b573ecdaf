"""The function that CloudFormation calls on every deployment, and how it answers."""

import http.server
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from functions.migrate import handler
from infra.local import postgres
from jobplatform import settings
from tests.helpers.events import load_event
from tests.helpers.platform import Context


class ResponseUrl:
    """What stands behind a ResponseURL: S3, which takes a PUT signed for no content type."""

    def __init__(self) -> None:
        self.answers: list[dict[str, Any]] = []
        self.content_types: list[str | None] = []
        self.status = 200
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_PUT(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.answers.append(json.loads(body))
                outer.content_types.append(self.headers["Content-Type"])
                self.send_response(outer.status)
                self.end_headers()

            def log_message(self, *arguments: Any) -> None:
                pass

        self.server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/answer?signature=x"


@pytest.fixture
def response_url() -> Iterator[ResponseUrl]:
    made = ResponseUrl()
    thread = threading.Thread(target=made.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.server.shutdown()
    thread.join()
    made.server.server_close()


@pytest.fixture
def database(
    empty: settings.DatabaseSettings, monkeypatch: pytest.MonkeyPatch
) -> settings.DatabaseSettings:
    monkeypatch.setenv("DATABASE_URL", empty.url or "")
    return empty


def invoke(name: str, response_url: ResponseUrl) -> dict[str, Any]:
    handler.lambda_handler(load_event(name, ResponseURL=response_url.url), Context())
    return response_url.answers[-1]


def tables(address: settings.DatabaseSettings) -> set[str]:
    connection = postgres.connect(address.url or "")
    try:
        rows = connection.run(
            "SELECT table_name FROM information_schema.tables WHERE table_schema = 'jobplatform'"
        )
    finally:
        connection.close()
    return {row[0] for row in rows or []}


def test_first_deployment_makes_the_tables_before_it_answers(
    database: settings.DatabaseSettings, response_url: ResponseUrl
) -> None:
    answer = invoke("migrate_create", response_url)

    event = load_event("migrate_create")
    assert answer == {
        "Status": "SUCCESS",
        "Reason": "",
        "PhysicalResourceId": "jobplatform-schema",
        **{name: event[name] for name in ("StackId", "RequestId", "LogicalResourceId")},
    }
    assert response_url.content_types == [""], "S3 compares it with what was signed"
    assert {"jobs", "clients", "alembic_version"} <= tables(database)


def test_later_deployments_keep_the_resource_and_change_nothing_that_is_up_to_date(
    database: settings.DatabaseSettings, response_url: ResponseUrl
) -> None:
    invoke("migrate_create", response_url)
    before = tables(database)

    answer = invoke("migrate_update", response_url)

    assert answer["Status"] == "SUCCESS"
    # Another id would make CloudFormation delete the old resource.
    assert answer["PhysicalResourceId"] == load_event("migrate_update")["PhysicalResourceId"]
    assert tables(database) == before


def test_deleting_the_stack_leaves_the_data(
    database: settings.DatabaseSettings, response_url: ResponseUrl
) -> None:
    invoke("migrate_create", response_url)

    answer = invoke("migrate_delete", response_url)

    assert answer["Status"] == "SUCCESS"
    assert "jobs" in tables(database)


def test_deleting_needs_no_database(
    monkeypatch: pytest.MonkeyPatch, response_url: ResponseUrl
) -> None:
    """A deployment that failed for the database has to be able to go."""
    monkeypatch.delenv("DATABASE_URL", raising=False)

    assert invoke("migrate_delete", response_url)["Status"] == "SUCCESS"


@pytest.mark.parametrize("url", [None, "postgresql://nobody@127.0.0.1:9/none"])
def test_failure_is_told_with_its_reason_instead_of_being_waited_for(
    monkeypatch: pytest.MonkeyPatch, response_url: ResponseUrl, url: str | None
) -> None:
    if url is None:
        monkeypatch.delenv("DATABASE_URL", raising=False)
    else:
        monkeypatch.setenv("DATABASE_URL", url)

    answer = invoke("migrate_create", response_url)

    assert answer["Status"] == "FAILED"
    assert answer["Reason"]
    assert Context.log_stream_name in answer["Reason"]
    # CloudFormation takes 4 KB in all.
    assert len(json.dumps(answer)) < 4_096


def test_answer_that_was_not_taken_is_an_error_so_that_lambda_tries_again(
    database: settings.DatabaseSettings, response_url: ResponseUrl
) -> None:
    response_url.status = 403

    with pytest.raises(OSError, match="403"):
        invoke("migrate_create", response_url)
    response_url.status = 200
    assert invoke("migrate_create", response_url)["Status"] == "SUCCESS"

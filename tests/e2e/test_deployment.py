"""A new version is deployed while exports run."""

import contextlib
import hashlib
import io
import urllib.request
import uuid
import zipfile
from collections.abc import Iterator

import pytest

from infra.local import postgres
from infra.local.up import LocalTarget
from jobclient import Client
from tests.helpers import store

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

EXPORTS = 5
FUNCTIONS = ("Worker", "Api", "Dispatcher", "Purge", "Admin")


@pytest.fixture
def slow_reads(target: LocalTarget) -> Iterator[None]:
    """Reading the flights takes seconds, so that exports are under way when something happens."""
    connection = postgres.connect(str(target.state.data_database_url))
    run = connection.run
    run("ALTER TABLE flights RENAME TO all_flights")
    run(
        "CREATE VIEW flights AS SELECT f.* FROM all_flights AS f"
        " WHERE f.id % 1000 <> 0 OR pg_sleep(0.1) IS NOT NULL"
    )
    yield
    run("DROP VIEW flights")
    run("ALTER TABLE all_flights RENAME TO flights")
    connection.close()


def deploy_new_code(target: LocalTarget) -> None:
    """Every function gets other code, as a deployment gives it to them."""
    functions = target.client("lambda")
    for name in FUNCTIONS:
        function = target.outputs[f"{name}FunctionName"]
        before = functions.get_function(FunctionName=function)
        with urllib.request.urlopen(before["Code"]["Location"]) as answer:
            code = io.BytesIO(answer.read())
        with zipfile.ZipFile(code, "a") as archive:
            archive.writestr(f"version-{uuid.uuid4()}.txt", "new")
        after = functions.update_function_code(FunctionName=function, ZipFile=code.getvalue())
        assert after["CodeSha256"] != before["Configuration"]["CodeSha256"]


@pytest.mark.usefixtures("slow_reads")
def test_a_deployment_while_exports_run_loses_and_repeats_nothing(
    target: LocalTarget, client: Client
) -> None:
    ids = [client.submit("flights", {"carrier": "UA"}).id for _ in range(EXPORTS)]

    def of_ours(query: str) -> int:
        with contextlib.closing(postgres.connect(str(target.state.database_url))) as connection:
            [[found]] = connection.run(query, ids=ids)
        return int(found)

    def running() -> int:
        return of_ours(
            "SELECT count(*) FROM jobplatform.jobs WHERE id = ANY(CAST(:ids AS uuid[]))"
            " AND status = 'running' AND rows_written > 0"
        )

    store.until(lambda: running() >= 2, seconds=60, what="exports are under way")

    deploy_new_code(target)

    cut_short = of_ours(
        "SELECT count(*) FROM jobplatform.transitions WHERE job_id = ANY(CAST(:ids AS uuid[]))"
        " AND reason = 'worker stopped'"
    )
    done = [client.wait(job_id, timeout=120) for job_id in ids]
    assert cut_short > 0
    assert [job.status for job in done] == ["succeeded"] * EXPORTS
    assert [job.attempts for job in done] == [1] * EXPORTS
    sink = io.BytesIO()
    with contextlib.closing(postgres.connect(str(target.state.data_database_url))) as connection:
        connection.run(
            "COPY (SELECT * FROM all_flights WHERE carrier = 'UA' ORDER BY id)"
            " TO STDOUT (FORMAT csv, HEADER)",
            stream=sink,
        )
    expected = hashlib.sha256(sink.getvalue()).hexdigest()
    assert {job.result.sha256 for job in done if job.result} == {expected}
    assert of_ours(
        "SELECT count(*) FROM jobplatform.transitions WHERE job_id = ANY(CAST(:ids AS uuid[]))"
        " AND to_status = 'succeeded'"
    ) == len(ids)

"""`make demo`: one export, from the request to the compared file, told to a newcomer."""

import csv
import dataclasses
import hashlib
import json
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

import httpx
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

from infra.local import flights
from infra.local.errors import LocalError
from infra.local.postgres import connect
from infra.local.state import State
from jobclient import Client, Job, SubmittedJob

TEMPLATE = "flights"
PLAN = "pro"


class Demo:
    """The steps of the demonstration, against a target that runs."""

    def __init__(self, console: Console, state: State, result: Path) -> None:
        self._console = console
        self._state = state
        self._result = result
        self._number = 0

    def run(self) -> None:
        """Raises `LocalError` where the platform does not do what it promises."""
        with Client(self._state.api_url, self._state.keys[PLAN]) as client:
            self._turned_away()
            job = self._submit(client)
            finished = self._follow(client, job)
            self._download(client, finished)
            self._compare(client)

    def _turned_away(self) -> None:
        self._title("A request without an API key")
        answer = httpx.post(
            f"{self._state.api_url}/jobs", json={"template_name": TEMPLATE, "parameters": {}}
        )
        if answer.status_code != 403:
            raise LocalError(f"A request without a key was answered {answer.status_code}, not 403.")
        self._call("POST /jobs", "403", answer.json().get("detail", ""))

    def _submit(self, client: Client) -> SubmittedJob:
        self._title("Ask for every flight that left New York City in 2013")
        key = f"demo-{uuid.uuid4()}"
        self._say(f'{{"template_name": "{TEMPLATE}", "parameters": {{}}}}')
        self._say(f"Idempotency-Key: {key}")
        job = client.submit(TEMPLATE, {}, idempotency_key=key)
        self._call("POST /jobs", "202", f"job {job.id}, {job.status}")

        self._title("The same request again, as after a lost answer")
        again = client.submit(TEMPLATE, {}, idempotency_key=key)
        if again.id != job.id or not again.replayed:
            raise LocalError(f"The repeated request made another job: {again.id}, not {job.id}.")
        self._call("POST /jobs", "202", "the same job; Idempotent-Replayed: true")
        return job

    def _follow(self, client: Client, job: SubmittedJob) -> Job:
        self._title("Follow it")
        columns = [
            TextColumn("   "),
            SpinnerColumn(),
            TextColumn("{task.fields[status]:<9}"),
            BarColumn(40),
            TextColumn("{task.completed:>9,.0f} rows"),
        ]
        started = time.monotonic()
        with Progress(
            *columns,
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        ) as progress:
            bar = progress.add_task("", total=flights.ROWS, status=job.status)

            def show(now: Job) -> None:
                progress.update(bar, completed=now.progress.rows, status=now.status)

            finished = client.wait(job.id, timeout=120, on_update=show).raise_for_status()
        seconds = time.monotonic() - started
        assert finished.result is not None
        self._call(
            f"GET /jobs/{finished.id}",
            "200",
            f"{finished.status} after {seconds:.1f} s: {finished.result.rows:,} rows, "
            f"{finished.result.bytes / 1e6:.1f} MB",
        )
        return finished

    def _download(self, client: Client, job: Job) -> None:
        self._title("Download it, straight from S3 by a presigned URL")
        self._result.parent.mkdir(parents=True, exist_ok=True)
        self._result.unlink(missing_ok=True)
        started = time.monotonic()
        done = client.download(job.id, self._result)
        self._call(
            f"GET /jobs/{job.id}/download",
            "200",
            f"{done.bytes / 1e6:.1f} MB in {time.monotonic() - started:.1f} s",
        )

    def _compare(self, client: Client) -> None:
        self._title("Compare it with what PostgreSQL itself writes")
        columns = ", ".join(f'"{column.name}"' for column in client.template(TEMPLATE).columns)
        query = f"SELECT {columns} FROM flights ORDER BY id"
        self._say("COPY (SELECT … FROM flights ORDER BY id) TO STDOUT (FORMAT csv, HEADER)")
        expected = _copied(self._state.data_database_url, query)
        got = _read(self._result)
        if got != expected:
            raise LocalError(f"The export is not what the database says: {got}, not {expected}.")
        self._say(f"SHA-256 {got.sha256}, both")
        self._console.print(f"    [bold green]✓ {got.rows} rows, SHA-256 equal[/]", highlight=False)

    def _title(self, text: str) -> None:
        self._number += 1
        self._console.print(f"\n  [bold]{self._number}. {escape(text)}[/]", highlight=False)

    def _say(self, text: str) -> None:
        self._console.print(f"    [dim]{escape(text)}[/]", highlight=False, soft_wrap=True)

    def _call(self, call: str, status: str, text: str) -> None:
        self._console.print(
            f"    {escape(call)} [cyan]→ {status}[/] {escape(text)}",
            highlight=False,
            soft_wrap=True,
        )


@dataclasses.dataclass(frozen=True)
class Content:
    """What is compared: a CSV's rows without its header, and its bytes."""

    rows: int
    sha256: str


class _Hasher:
    def __init__(self) -> None:
        self.hash = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.hash.update(data)
        return len(data)


def _copied(database_url: str, query: str) -> Content:
    """The database's own CSV of a query; nothing of the platform's code is in the way."""
    connection = connect(database_url)
    try:
        connection.run("SET TIME ZONE 'UTC'")
        written = _Hasher()
        connection.run(f"COPY ({query}) TO STDOUT (FORMAT csv, HEADER)", stream=written)
        return Content(rows=connection.row_count, sha256=written.hash.hexdigest())
    finally:
        connection.close()


def _read(path: Path) -> Content:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    with path.open(newline="") as text:
        rows = sum(1 for _ in csv.reader(text)) - 1
    return Content(rows=rows, sha256=digest)


def things_to_try() -> Sequence[tuple[str, str]]:
    """A sentence and a line for the shell each; they use the variables of `for_the_shell`."""
    body = json.dumps({"template_name": TEMPLATE, "parameters": {"carrier": "UA"}})
    get = 'curl -s -H "x-api-key: $JOBS_API_KEY"'
    return [
        ("Which reports are there?", f"{get} $JOBS_API_URL/templates"),
        (
            "Ask for the flights of United Airlines; repeat it, and it is still one job",
            f"{get} -H 'Content-Type: application/json' -H 'Idempotency-Key: my-first-job' "
            f"-d '{body}' $JOBS_API_URL/jobs",
        ),
        (
            "Ask, wait and download, by the command line",
            f".venv/bin/jobctl submit {TEMPLATE} --param carrier=UA --output .local/united.csv",
        ),
    ]


def for_the_shell(state: State) -> str:
    return f"export JOBS_API_URL={state.api_url} JOBS_API_KEY={state.keys[PLAN]}"

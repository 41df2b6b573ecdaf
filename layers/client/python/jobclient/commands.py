"""The commands of `jobctl`: each a thin skin over `Client`."""

import contextlib
import json
import re
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

from jobclient import admin_commands, client, downloads, errors, manifests, models, output

app = typer.Typer(
    name="jobctl",
    help="Ask for reports, follow them, download them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(admin_commands.app, name="admin")

Url = Annotated[
    str,
    typer.Option(
        "--url", metavar="URL", envvar="JOBS_API_URL", help="Address of the API, stage included."
    ),
]
Key = Annotated[
    str,
    typer.Option(
        "--key",
        metavar="KEY",
        envvar="JOBS_API_KEY",
        help="API key; better by the variable than by the option.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
JobId = Annotated[str, typer.Argument(metavar="ID", help="The job's id.")]
Timeout = Annotated[
    float | None,
    typer.Option("--timeout", metavar="SECONDS", min=0, help="Stop waiting after so many seconds."),
]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output", "-o", metavar="PATH", help="File or folder; an existing file is replaced."
    ),
]
WithManifest = Annotated[
    bool,
    typer.Option("--manifest", help="Save the result's manifest beside it, for `jobctl verify`."),
]


@app.command()
def submit(
    url: Url,
    key: Key,
    template: Annotated[
        str, typer.Argument(metavar="TEMPLATE", help="Which report; `jobctl templates` lists them.")
    ],
    parameters: Annotated[
        list[str] | None,
        typer.Option(
            "--param", "-p", metavar="NAME=TEXT|NAME:=JSON", help="A parameter; can be repeated."
        ),
    ] = None,
    params_file: Annotated[
        Path | None,
        typer.Option(
            "--params-file",
            metavar="FILE",
            help="JSON object of parameters, - for stdin; --param wins over it.",
        ),
    ] = None,
    run_at: Annotated[
        str | None,
        typer.Option("--run-at", metavar="TIME", help="Not before this time (RFC 3339)."),
    ] = None,
    idempotency_key: Annotated[
        str | None,
        typer.Option(
            "--idempotency-key", metavar="KEY", help="The same key makes the same job for 24 hours."
        ),
    ] = None,
    metadata: Annotated[
        list[str] | None,
        typer.Option(
            "--metadata", metavar="NAME=TEXT|NAME:=JSON", help="Kept with the job, not read."
        ),
    ] = None,
    format: Annotated[
        str | None,
        typer.Option("--format", metavar="FORMAT", help="csv (default), csv-excel or jsonl."),
    ] = None,
    compression: Annotated[
        str | None, typer.Option("--compression", metavar="KIND", help="none (default) or gzip.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until the job is final.")] = False,
    timeout: Timeout = None,
    path: Output = None,
    json_: Json = False,
) -> None:
    """Submit a job. With --output wait for it and download its result."""
    given = _params_file(params_file) | _pairs(parameters, "--param")
    # Made here, so that a submit whose answer got lost can be repeated by hand as the same job.
    idempotency_key = idempotency_key if idempotency_key is not None else str(uuid.uuid4())
    path = _file_path(path)
    with _client(url, key) as jobs:
        try:
            with _usage():
                job: models.Job = jobs.submit(
                    template,
                    given,
                    run_at=_time(run_at, "--run-at"),
                    metadata=_pairs(metadata, "--metadata") or None,
                    format=format,
                    compression=compression,
                    idempotency_key=idempotency_key,
                )
        except (errors.TransportError, errors.ServerError):
            output.note(
                "It is not known whether the job was made. Repeat the command with "
                f"--idempotency-key {idempotency_key}: that makes one job in any case."
            )
            raise
        if not wait and path is None:
            if json_:
                output.as_json(job)
                return
            output.job(job)
            output.note(f"\nFollow it: jobctl wait {job.id}\nThen:      jobctl download {job.id}")
            return
        _finish(jobs, job.id, timeout, json_, download_to=path)


@app.command(name="list")
def list_(
    url: Url,
    key: Key,
    status: Annotated[
        str | None,
        typer.Option(
            "--status", metavar="STATUS", help="queued, running, succeeded, failed, cancelled."
        ),
    ] = None,
    template: Annotated[
        str | None, typer.Option("--template", metavar="NAME", help="Jobs of this template only.")
    ] = None,
    created_after: Annotated[
        str | None, typer.Option("--created-after", metavar="TIME", help="RFC 3339.")
    ] = None,
    created_before: Annotated[
        str | None, typer.Option("--created-before", metavar="TIME", help="RFC 3339.")
    ] = None,
    limit: Annotated[
        int, typer.Option("--limit", metavar="N", min=1, help="At most so many.")
    ] = 20,
    json_: Json = False,
) -> None:
    """List your jobs, newest first."""
    with _client(url, key) as jobs, _usage():
        found = list(
            islice(
                jobs.list(
                    status=status,
                    template_name=template,
                    created_after=_time(created_after, "--created-after"),
                    created_before=_time(created_before, "--created-before"),
                    page_size=min(limit, 200),
                ),
                limit,
            )
        )
    if json_:
        output.as_json([job.model_dump(mode="json") for job in found])
    else:
        output.jobs(found)


@app.command()
def show(url: Url, key: Key, job_id: JobId, json_: Json = False) -> None:
    """Show a job as it is now."""
    with _client(url, key) as jobs, _usage():
        job = jobs.get(job_id)
    if json_:
        output.as_json(job)
    else:
        output.job(job)


@app.command()
def wait(url: Url, key: Key, job_id: JobId, timeout: Timeout = None, json_: Json = False) -> None:
    """Wait until a job is final. Fails if the job did."""
    with _client(url, key) as jobs:
        _finish(jobs, job_id, timeout, json_)


@app.command()
def download(
    url: Url,
    key: Key,
    job_id: JobId,
    path: Output = None,
    manifest: WithManifest = False,
    json_: Json = False,
) -> None:
    """Download a result. Goes on where an earlier try broke off."""
    path = _file_path(path)
    manifest_path = None
    with _client(url, key) as jobs:
        done = _download(jobs, job_id, path or Path())
        if manifest:
            manifest_path = done.path.with_name(done.path.name + ".manifest.json")
            with _usage():
                jobs.download_manifest(job_id, manifest_path)
    if json_:
        facts = {"manifest": str(manifest_path)} if manifest_path else {}
        output.as_json({**_file_facts(done), **facts})
        return
    _print_download(done)
    if manifest_path:
        output.line(f"{manifest_path}: its manifest, for jobctl verify")


@app.command()
def cancel(url: Url, key: Key, job_id: JobId, json_: Json = False) -> None:
    """Cancel a job. A running one ends within seconds."""
    with _client(url, key) as jobs, _usage():
        job = jobs.cancel(job_id)
    if json_:
        output.as_json(job)
    else:
        output.line(
            f"Job {job.id} is cancelled."
            if job.status == "cancelled"
            else f"Job {job.id} is being cancelled (now: {job.status})."
        )


@app.command()
def templates(
    url: Url,
    key: Key,
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Show this one with its parameters.")
    ] = None,
    json_: Json = False,
) -> None:
    """List the templates, or show one."""
    with _client(url, key) as jobs, _usage():
        found = jobs.templates() if name is None else jobs.template(name)
    if json_:
        output.as_json(
            [one.model_dump(mode="json") for one in found] if isinstance(found, list) else found
        )
    elif isinstance(found, list):
        output.table(
            ["name", "version", "title"], ([one.name, one.version, one.title] for one in found)
        )
    else:
        output.template(found)


@app.command()
def verify(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The file as it was downloaded.")],
    manifest: Annotated[Path, typer.Argument(metavar="MANIFEST", help="Its manifest (JSON).")],
    json_: Json = False,
) -> None:
    """Check a file against its manifest, offline.

    Bytes, SHA-256, each part and the number of rows; --json prints what was found.
    """
    stated = manifests.load(manifest)
    with output.transferring(f"checking {file.name}") as progress:
        verified = manifests.verify(file, stated, on_progress=progress)
    if json_:
        output.as_json(
            {
                "file": str(file),
                "rows": verified.rows,
                "bytes": verified.bytes,
                "sha256": verified.sha256,
                "parts": verified.parts,
            }
        )
        return
    rows = "rows not counted" if verified.rows is None else f"{verified.rows:,} rows"
    output.line(f"{file}: as its manifest says: {rows}, {verified.bytes:,} bytes, SHA-256 equal")


def _client(url: str, key: str) -> client.Client:
    with _usage():
        return client.Client(url, key)


@contextlib.contextmanager
def _usage() -> Iterator[None]:
    """Arguments that the client refuses before it sends anything are a wrong command line."""
    try:
        yield
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def _finish(
    jobs: client.Client,
    job_id: str,
    timeout: float | None,
    json_: bool,
    *,
    download_to: Path | None = None,
) -> None:
    """Follows the job to its end, downloads if asked to, prints it, and fails if it failed."""
    with _usage(), output.following() as update:
        try:
            # Short polls, because the answer comes at the end and people like to see rows move.
            job = jobs.wait(job_id, timeout=timeout, poll=3, on_update=update)
        except KeyboardInterrupt:
            output.note(f"The job goes on. Follow it again: jobctl wait {job_id}")
            raise
    done = None
    if download_to is not None and job.status == "succeeded":
        done = _download(jobs, job_id, download_to)
    if json_:
        facts: Mapping[str, Any] = {"file": _file_facts(done)} if done else {}
        output.as_json({**job.model_dump(mode="json"), **facts})
    else:
        output.job(job)
        if done:
            _print_download(done)
    job.raise_for_status()


def _download(jobs: client.Client, job_id: str, path: Path) -> downloads.Download:
    with _usage(), output.transferring("downloading") as progress:
        return jobs.download(job_id, path, on_progress=progress)


def _print_download(done: downloads.Download) -> None:
    resumed = f", {output.size(done.resumed_from)} of it from before" if done.resumed_from else ""
    output.line(f"{done.path}: {output.size(done.bytes)}{resumed}, SHA-256 {done.sha256}")


def _file_facts(done: downloads.Download) -> dict[str, Any]:
    return {
        "path": str(done.path),
        "bytes": done.bytes,
        "sha256": done.sha256,
        "resumed_from": done.resumed_from,
    }


def _pairs(values: Sequence[str] | None, option: str) -> dict[str, Any]:
    """`name=text` and `name:=json` as a dictionary."""
    pairs: dict[str, Any] = {}
    for value in values or ():
        found = re.fullmatch(r"([^=]+?)(:?=)(.*)", value, re.DOTALL)
        if found is None:
            raise typer.BadParameter(f"{value!r} is not NAME=TEXT or NAME:=JSON", param_hint=option)
        name, sign, text = found.groups()
        if name in pairs:
            raise typer.BadParameter(
                f"{name} is given twice; a list is written {name}:='[1, 2]'", param_hint=option
            )
        pairs[name] = _json(text, f"{name} in {option}") if sign == ":=" else text
    return pairs


def _params_file(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        text = sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(str(error), param_hint="--params-file") from error
    found = _json(text, "--params-file")
    if not isinstance(found, dict):
        raise typer.BadParameter("it has to hold a JSON object", param_hint="--params-file")
    return found


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise typer.BadParameter(f"no JSON: {error}", param_hint=where) from error


def _time(value: str | None, option: str) -> datetime | None:
    if value is None:
        return None
    try:
        time = datetime.fromisoformat(value)
    except ValueError:
        time = None
    if time is None or time.tzinfo is None:
        raise typer.BadParameter(
            f"{value!r} is no time with a zone, like 2026-01-31T09:00:00+01:00 or "
            "2026-01-31T08:00:00Z",
            param_hint=option,
        )
    return time


def _file_path(path: Path | None) -> Path | None:
    if str(path) == "-":
        raise typer.BadParameter(
            "a result is checked before it can be used, so it goes to a file", param_hint="--output"
        )
    return path

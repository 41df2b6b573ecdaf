"""What people see: results on stdout, everything else on stderr, JSON for scripts."""

import contextlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import pydantic
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table
from rich.text import Text

from jobclient import models

_COLOURS = {"succeeded": "green", "failed": "red", "cancelled": "yellow", "running": "cyan"}


def _console(*, stderr: bool = False) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    # A pipe has no width: ids must not be cut for `grep` and `awk`.
    return Console(
        stderr=stderr, highlight=False, markup=False, width=None if stream.isatty() else 240
    )


def text(value: object) -> str:
    """A value as text that cannot steer the terminal, whoever wrote it."""
    if value is None:
        return "-"
    if isinstance(value, datetime):
        return f"{value.astimezone(UTC):%Y-%m-%d %H:%M:%S}Z"
    if isinstance(value, Mapping | list | tuple):
        value = json.dumps(value, ensure_ascii=False, default=str)
    return "".join(
        c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in str(value)
    )


def line(value: str) -> None:
    """A line of the result, whole even where the terminal is narrow."""
    _console().print(Text(text(value)), soft_wrap=True)


def note(value: str) -> None:
    """Something beside the result."""
    _console(stderr=True).print(Text(text(value)), soft_wrap=True)


def failure(value: str) -> None:
    _console(stderr=True).print(Text.assemble(("Error: ", "bold red"), text(value)), soft_wrap=True)


def as_json(value: object) -> None:
    """One JSON document on stdout; unknown fields of the platform's answer included."""
    if isinstance(value, pydantic.BaseModel):
        value = value.model_dump(mode="json")
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False, default=_plain) + "\n")


def _plain(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str = "") -> None:
    """A table; says so when it is empty. In a pipe a row is a line, with tabs between its cells."""
    if title:
        _console().print(Text(f"\n{title}", style="bold"))
    found = list(rows)
    if not found:
        note("None.")
    elif not sys.stdout.isatty():
        for row in (columns, *found):
            cells = (text(value).replace("\n", " ") for value in row)
            sys.stdout.write("\t".join(cells) + "\n")
    else:
        grid = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
        for column in columns:
            grid.add_column(column, overflow="fold")
        for row in found:
            grid.add_row(*(_cell(value) for value in row))
        _console().print(grid)


def facts(pairs: Iterable[tuple[str, object]]) -> None:
    """Names and values, one a line; those that are not known are left out."""
    grid = Table.grid(padding=(0, 2))
    for name, value in pairs:
        if value not in (None, "", {}, []):
            grid.add_row(Text(name, style="bold"), _cell(value))
    _console().print(grid)


def anything(value: object) -> None:
    """An operator's answer, whose shape is the platform's to choose."""
    if isinstance(value, Mapping):
        lists = {name: v for name, v in value.items() if _is_rows(v)}
        facts((name, v) for name, v in value.items() if name not in lists)
        for name, rows in lists.items():
            _rows(rows, title=str(name))
    elif _is_rows(value) or value == []:
        _rows(value)
    else:
        line(text(value))


def _is_rows(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(v, Mapping) for v in value)


def _rows(rows: Any, *, title: str = "") -> None:
    names = list(dict.fromkeys(name for row in rows for name in row))
    table(names, ([row.get(name) for name in names] for row in rows), title=title)


def _cell(value: object) -> Text:
    shown = text(value)
    return Text(shown, style=_COLOURS.get(shown, ""), overflow="fold")


def job(shown: models.Job) -> None:
    """Everything about a job that a person asks for."""
    result, progress = shown.result, shown.progress
    facts(
        [
            ("id", shown.id),
            ("status", shown.status),
            ("template", f"{shown.template_name} (version {shown.template_version})"),
            ("parameters", shown.parameters),
            ("metadata", shown.metadata),
            ("error", f"{shown.error.message} ({shown.error.code})" if shown.error else None),
            ("progress", _progress(progress) if shown.status == "running" else None),
            ("attempts", f"{shown.attempts} of {shown.max_attempts or '?'}"),
            ("run at", shown.run_at),
            ("created", shown.created_at),
            ("started", shown.started_at),
            ("finished", shown.finished_at),
            *(_result(result) if result else []),
        ]
    )


def _result(result: models.Result) -> list[tuple[str, object]]:
    packed = f", {result.compression}" if result.compression not in (None, "none") else ""
    return [
        ("result", f"{result.rows:,} rows, {size(result.bytes)}, {result.format}{packed}"),
        ("SHA-256", result.sha256),
        ("data as of", result.as_of),
        ("kept until", result.expires_at),
    ]


def jobs(shown: Iterable[models.Job]) -> None:
    table(
        ["id", "template", "status", "rows", "created", "finished"],
        (
            [
                job.id,
                job.template_name,
                job.status,
                f"{(job.result or job.progress).rows:,}",
                job.created_at,
                job.finished_at,
            ]
            for job in shown
        ),
    )


def template(shown: models.Template) -> None:
    facts([("name", shown.name), ("version", shown.version), ("title", shown.title)])
    if shown.description:
        line(f"\n{shown.description.strip()}")
    required = shown.parameters.get("required", [])
    properties = shown.parameters.get("properties", {})
    if properties:
        table(
            ["parameter", "type", "needed", "default", "meaning"],
            (
                [
                    name,
                    _type(schema),
                    "yes" if name in required else "no",
                    schema.get("default"),
                    schema.get("description") or schema.get("title"),
                ]
                for name, schema in properties.items()
            ),
            title="Parameters",
        )
    else:
        line("\nIt takes no parameters.")
    table(["column", "type"], ([c.name, c.type] for c in shown.columns), title="Columns")


def _type(schema: Mapping[str, Any]) -> str:
    """A JSON Schema's type in a word or two."""
    if "anyOf" in schema:
        return " or ".join(_type(one) for one in schema["anyOf"] if one.get("type") != "null")
    if "enum" in schema:
        return " | ".join(str(value) for value in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    return str(schema.get("format") or schema.get("type") or "any")


def size(count: int) -> str:
    """Bytes in the unit that a person would use."""
    amount, units = float(count), ["bytes", "kB", "MB", "GB", "TB"]
    while amount >= 1000 and len(units) > 1:
        amount /= 1000
        units.pop(0)
    return f"{count} bytes" if units[0] == "bytes" else f"{amount:.1f} {units[0]}"


def _progress(progress: models.Progress) -> str:
    percent = "" if progress.percent is None else f", {progress.percent:g} %"
    return f"{progress.rows:,} rows, {size(progress.bytes)}{percent}"


class _Written(ProgressColumn):
    """Rows and bytes so far."""

    def render(self, task: Task) -> Text:
        return Text(task.fields.get("written", ""))


@contextlib.contextmanager
def following() -> Iterator[Callable[[models.Job], None]]:
    """A bar for a job on its way, fed by the function that it yields; none without a terminal."""
    console = _console(stderr=True)
    bar = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        _Written(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with bar:
        task = bar.add_task("", total=None)

        def update(job: models.Job) -> None:
            due = job.available_at
            later = job.status == "queued" and due and due > datetime.now(UTC)
            bar.update(
                task,
                description=f"due at {text(due)}" if later else text(job.status),
                total=None if job.progress.percent is None else 100,
                completed=job.progress.percent or 0,
                written=_progress(job.progress) if job.progress.rows else "",
            )

        yield update


@contextlib.contextmanager
def transferring(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar for bytes, fed by the function that it yields; none without a terminal."""
    console = _console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)

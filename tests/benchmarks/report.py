"""The table while it grows, `build/bench.json`, its details, and the plot."""

import datetime as dt
import json
import os
import platform
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from tests.benchmarks import plot
from tests.benchmarks.measuring import Result


class Report:
    """Shows results as they come; draws between measurements only, and so costs none of them."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self.results: list[Result] = []
        self._missing: list[str] = []
        self._load = os.getloadavg()
        self._began = dt.datetime.now(dt.UTC)
        self._live = Live(console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> "Report":
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._live.stop()

    def told(self, text: str) -> None:
        if self._console.is_terminal:
            table = self.table()
            table.caption = Text(text, style="dim")
            self._live.update(table, refresh=True)

    def heading(self, title: str) -> None:
        if not self._console.is_terminal:
            self._console.print(f"\n{escape(title)}", highlight=False, soft_wrap=True)

    def add(self, result: Result) -> None:
        self.results.append(result)
        if not self._console.is_terminal:
            low, high = result.spread
            goal = f"{_mark(result)} {result.goal}" if result.goal else ""
            self._console.print(
                f"  {escape(result.name)}: {result.ratio:.2f} {goal}"
                f"  ({low:.2f}-{high:.2f}; {escape(result.ours)} / {escape(result.theirs)})"
                + (f"  {escape(result.note)}" if result.note else ""),
                highlight=False,
                soft_wrap=True,
            )

    def missing(self, name: str, why: str) -> None:
        self._missing.append(f"{name} was not measured: {why}.")

    def table(self) -> Table:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in ("", "ratio", "goal", "", "rounds", "ours", "theirs", ""):
            table.add_column(name, justify="right" if name in ("ratio", "goal") else "left")
        for result in self.results:
            low, high = result.spread
            table.add_row(
                escape(result.name),
                f"{result.ratio:.2f}",
                str(result.goal or ""),
                _mark(result),
                f"[dim]{low:.2f}-{high:.2f}[/]",
                escape(result.ours),
                escape(result.theirs),
                f"[dim]{escape(result.note)}[/]",
            )
        return table

    def markdown(self) -> str:
        """The table as docs/explanation/performance.md shows it."""
        lines = [
            "| | ratio | goal | | single rounds | ours | theirs |",
            "|---|--:|--:|---|---|--:|--:|",
        ]
        for result in self.results:
            low, high = result.spread
            held = {None: "", True: "✓", False: "✗"}[result.holds]
            name = result.name.replace("|", "\\|")
            lines.append(
                f"| {name} | {result.ratio:.2f} | {result.goal or ''} | {held}"
                f" | {low:.2f}-{high:.2f} | {result.ours} | {result.theirs} |"
            )
        return "\n".join(lines) + "\n"

    def finish(self, folder: Path) -> None:
        """Prints the whole table and writes the files."""
        self._live.stop()
        if self._console.is_terminal:
            self._console.print(self.table())
        for line in self._missing:
            self._console.print(f"  {escape(line)}", highlight=False, soft_wrap=True)
        folder.mkdir(exist_ok=True)
        summaries = [result.summary() for result in self.results]
        (folder / "bench.json").write_text(json.dumps(summaries, indent=1) + "\n")
        (folder / "bench-details.json").write_text(json.dumps(self._details(), indent=1) + "\n")
        (folder / "bench.svg").write_text(plot.svg(self.results))
        (folder / "bench.md").write_text(self.markdown())
        if self._load[0] > 0.5 * (os.cpu_count() or 1):
            self._console.print(
                f"  [yellow]Others were at work here (load {self._load[0]:.1f} at the start):"
                " the ratios are not to be trusted.[/]",
                highlight=False,
            )
        held = [result for result in self.results if result.goal is not None]
        good = sum(bool(result.holds) for result in held)
        self._console.print(
            f"\n  {good} of {len(held)} goals hold. "
            f"{folder}/bench.json, bench-details.json, bench.svg, bench.md",
            highlight=False,
            soft_wrap=True,
        )

    def _details(self) -> dict[str, Any]:
        return {
            "began": self._began.isoformat(timespec="seconds"),
            "ended": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
            "python": platform.python_version(),
            "processors": os.cpu_count(),
            # Over the number of processors, others were at work: take it again.
            "load_before": self._load,
            "results": [
                {
                    **result.summary(),
                    "ours": result.ours,
                    "theirs": result.theirs,
                    "note": result.note,
                    "samples": {name: list(values) for name, values in result.samples.items()},
                }
                for result in self.results
            ],
        }


def _mark(result: Result) -> str:
    if result.holds is None:
        return ""
    return "[green]✓[/]" if result.holds else "[red]✗[/]"

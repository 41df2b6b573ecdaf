"""What a person sees: a line while it runs, a table when it is done."""

import time
from typing import Any

from rich.console import Console
from rich.status import Status
from rich.table import Table

from tests.chaos.ledger import PROMISES, Ledger

_SHOWN = 5
_STILL_SECONDS = 10.0
"""Between two lines where the output is no terminal."""


class Screen:
    """Progress on one line of a terminal, or now and then a line in a log."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._status: Status | None = None
        self._last = 0.0

    def __enter__(self) -> "Screen":
        if self.console.is_terminal:
            self._status = self.console.status("")
            self._status.start()
        return self

    def __exit__(self, *_: Any) -> None:
        if self._status is not None:
            self._status.stop()

    def say(self, text: str) -> None:
        """Something worth a line of its own."""
        self.console.print(text, highlight=False, soft_wrap=True)

    def now(self, text: str) -> None:
        if self._status is not None:
            self._status.update(text)
        elif time.monotonic() - self._last > _STILL_SECONDS:
            self._last = time.monotonic()
            self.say(f"  {text}")


def line(ledger: Ledger, total: int, states: dict[str, int]) -> str:
    """The progress of a run in one line."""
    counts = ledger.counts
    ended = ", ".join(f"{states[state]} {state}" for state in sorted(states))
    outages = sum(number for name, number in counts.items() if name.startswith("outages"))
    minutes, seconds = divmod(int(time.monotonic() - ledger.started), 60)
    return (
        f"{minutes}:{seconds:02} · {counts['accepted']}/{total} accepted · {ended or 'none yet'}"
        f" · {counts['kills']} kills · {outages} outages · {ledger.violation_count} violations"
    )


def table(ledger: Ledger, states: dict[str, int]) -> list[Table]:
    """What happened, and what became of each promise."""
    facts = Table("what happened", "number", title_justify="left")
    facts.columns[1].justify = "right"
    counts = dict(ledger.counts)
    facts.add_row("jobs accepted", str(counts.pop("accepted", 0)))
    for state in ("succeeded", "failed", "cancelled", "queued", "running"):
        if state in states:
            facts.add_row(f"  {state}", str(states[state]))
    facts.add_row("attempts", str(counts.pop("attempts", 0)))
    for name in sorted(counts):
        facts.add_row(name, str(counts[name]))
    promises = Table("promise", "", "violations")
    promises.columns[2].justify = "right"
    for promise, meaning in PROMISES.items():
        number = len(ledger.violations[promise])
        style = "bold red" if number else "green"
        promises.add_row(promise, meaning, f"[{style}]{number}[/]")
    return [facts, promises]


def violations(ledger: Ledger) -> list[str]:
    """Each violation in words, the first few of every promise."""
    lines = []
    for promise, found in ledger.violations.items():
        lines += [f"{promise}: {text}" for text in found[:_SHOWN]]
        if len(found) > _SHOWN:
            lines.append(f"{promise}: and {len(found) - _SHOWN} more")
    return lines

"""What a person sees while waiting: steps with a spinner; without a terminal a line each."""

import contextlib
import time
from collections.abc import Iterator

from rich.console import Console
from rich.markup import escape
from rich.status import Status


class ConsoleProgress:
    """Shows the step under way, and keeps a line of each that is done."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._name = ""
        self._status: Status | None = None

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        self._name = name
        try:
            with self._console.status(escape(name)) as self._status:
                yield
        except BaseException:
            self._console.print(f"  [red]✗[/] {escape(name)}", highlight=False)
            raise
        seconds = f"{time.monotonic() - started:5.1f} s"
        self._console.print(f"  [green]✓[/] {escape(name):<62} [dim]{seconds}[/]", highlight=False)

    def detail(self, text: str) -> None:
        if self._status is not None:
            self._status.update(f"{escape(self._name)} [dim]{escape(text)}[/]")

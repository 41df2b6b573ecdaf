"""`python -m infra.local up|down|status|demo`: the embedded target from the command line."""

import argparse
import json
import os
import sys
from pathlib import Path

from rich.console import Console

from infra.local import paths
from infra.local.console import ConsoleProgress
from infra.local.demo import Demo, for_the_shell, things_to_try
from infra.local.errors import LocalError
from infra.local.processes import interruptible
from infra.local.state import State, status
from infra.local.up import LocalTarget
from jobclient import JobClientError

RESULT = paths.ROOT / ".local" / "flights-2013.csv"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m infra.local", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("up", help="start, deploy, leave it running")
    commands.add_parser("down", help="stop it and remove its data")
    commands.add_parser("status", help="one JSON object for scripts")
    commands.add_parser("demo", help="one export from the request to the compared file")
    command = parser.parse_args().command

    state_dir = paths.default_state_dir()
    if command == "status":
        print(json.dumps(status(state_dir), indent=2))
        return 0
    console = Console()
    try:
        with interruptible():
            {"up": up, "down": down, "demo": demo}[command](console, state_dir)
    except (LocalError, JobClientError) as error:
        Console(stderr=True).print(f"\n{error}", style="red", markup=False, highlight=False)
        return 1
    except KeyboardInterrupt:
        console.print("\n  Interrupted.", highlight=False)
        return 130
    return 0


def up(console: Console, state_dir: Path) -> None:
    state = State.load(state_dir)
    if state is None or not state.is_running:
        console.print("\n[bold]The embedded target starts[/]\n", highlight=False)
        state = _target(console, state_dir).start()
    console.print(
        f"\n  [bold]It runs[/], on this machine alone, until [bold]make down[/].\n\n"
        f"  API          {state.api_url}\n"
        f"  Its docs     {state.api_url}/docs",
        highlight=False,
        soft_wrap=True,
    )
    for plan, key in state.keys.items():
        console.print(f"  Key, {plan:<7} {key}", highlight=False, soft_wrap=True)
    console.print("\n  Three things to try, after this line:", highlight=False)
    console.print(f"\n  {for_the_shell(state)}", markup=False, highlight=False, soft_wrap=True)
    for sentence, line in things_to_try():
        console.print(f"\n  [dim]# {sentence}[/]", highlight=False)
        console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)
    console.print()


def down(console: Console, state_dir: Path) -> None:
    state = State.load(state_dir)
    if state is None:
        console.print("  Nothing runs.", highlight=False)
        return
    with ConsoleProgress(console).step("Stop everything and remove its data"):
        LocalTarget(state_dir).stop()
    _say_what_stays(console, state)


def demo(console: Console, state_dir: Path) -> None:
    console.print(
        "\n[bold]The Async Job Platform[/]: the whole of it, on this machine alone\n",
        highlight=False,
    )
    running = State.load(state_dir)
    if running is not None and running.is_running:
        console.print("  It runs already, so this run uses it.", highlight=False)
        Demo(console, running, RESULT).run()
        console.print(
            f"\n  The file: {RESULT}\n  The target goes on running.\n",
            highlight=False,
            soft_wrap=True,
        )
        return
    target = _target(console, state_dir)
    state = target.start()
    try:
        Demo(console, state, RESULT).run()
    finally:
        console.print()
        with ConsoleProgress(console).step("Stop everything"):
            target.stop()
    _say_what_stays(console, state)
    console.print(
        f"\n  The file: {RESULT}\n  Next: [bold]make up[/] leaves it running for you.\n",
        highlight=False,
        soft_wrap=True,
    )


def _say_what_stays(console: Console, state: State) -> None:
    if state.postgres is None:
        console.print(
            "  Your own database keeps the schema jobplatform, and in the data database the tables "
            "flights, airlines and airports.",
            highlight=False,
        )


def _target(console: Console, state_dir: Path) -> LocalTarget:
    return LocalTarget(
        state_dir,
        database_url=os.environ.get("JOBPLATFORM_DATABASE_URL"),
        data_database_url=os.environ.get("JOBPLATFORM_DATA_DATABASE_URL"),
        progress=ConsoleProgress(console),
    )


if __name__ == "__main__":
    sys.exit(main())

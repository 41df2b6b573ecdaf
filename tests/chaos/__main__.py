"""`python -m tests.chaos`, which `make chaos` calls."""

import os
import sys

from rich.console import Console

from infra.local.errors import LocalError
from infra.local.processes import interruptible
from tests.chaos import options, protections, report, run


def main() -> int:
    given = options.parse(sys.argv[1:], os.environ)
    console = Console()
    console.print(f"Chaos with seed [bold]{given.seed}[/]: {given.jobs} jobs", highlight=False)
    if given.without:
        meaning = protections.PROTECTIONS[given.without].meaning
        console.print(f"Without {given.without}: {meaning}", highlight=False)
    try:
        with interruptible(), report.Screen(console) as screen:
            ledger = run.run(given, screen)
    except LocalError as error:
        console.print(str(error), style="red", highlight=False, markup=False)
        return 2
    except KeyboardInterrupt:
        console.print("Interrupted; everything was stopped.")
        return 130
    for text in report.violations(ledger):
        console.print(text, style="red", highlight=False, markup=False, soft_wrap=True)
    broken = ledger.violation_count
    again = f"make chaos SEED={given.seed} JOBS={given.jobs}"
    if given.without:
        noticed = "was noticed" if broken else "was NOT noticed"
        console.print(f"The removal of {given.without} {noticed}: {broken} violations.")
        return 0 if broken else 1
    if broken:
        console.print(f"[bold red]{broken} violations.[/] Again: {again}", highlight=False)
        return 1
    console.print(f"[bold green]No violation.[/] Again: {again}", highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The command line of the benchmarks: what to measure, at which size, and where it is reported."""

import argparse
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from infra.local import paths
from infra.local.errors import LocalError
from infra.local.processes import interruptible
from tests.benchmarks import registry
from tests.benchmarks.bench import Bench, discard_output
from tests.benchmarks.data import ROWS
from tests.benchmarks.measuring import NotMeasured
from tests.benchmarks.report import Report

BUILD = paths.ROOT / "build"


def main() -> int:
    arguments = _arguments()
    console = Console(file=sys.stdout)
    discard_output()  # the table goes to the terminal that was there before
    chosen = registry.load(arguments.names)
    folder = paths.ROOT / ".local" / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with (
            interruptible(),
            tempfile.TemporaryDirectory(prefix="run-", dir=folder) as run,
            Report(console) as report,
            Bench(
                Path(run), rows=arguments.rows, rounds=arguments.rounds, told=report.told
            ) as bench,
        ):
            for benchmark in chosen:
                report.heading(f"{benchmark.name}: {benchmark.title}")
                try:
                    for result in benchmark.run(bench):
                        report.add(result)
                except NotMeasured as missing:
                    report.missing(benchmark.name, str(missing))
    except LocalError as error:
        Console(stderr=True).print(f"\n{error}", style="red", markup=False, highlight=False)
        return 1
    except KeyboardInterrupt:
        console.print("\n  Interrupted.", highlight=False)
        return 130
    report.finish(BUILD)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks", description=registry.__doc__
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"one or more of: {', '.join(registry.MODULES)}"
    )
    parser.add_argument(
        "--rows", type=int, default=ROWS, help=f"size of the data, rows of flights ({ROWS:,})"
    )
    parser.add_argument("--rounds", type=int, help="repetitions; usual: 3 to 9")
    found = parser.parse_args()
    for name in found.names:
        if name not in registry.MODULES:
            parser.error(f"there is no benchmark {name}; choose of {', '.join(registry.MODULES)}")
    if found.rows < 1000:
        parser.error("--rows has to be 1000 at least")
    return found

"""Which benchmarks there are, in the order in which they run."""

import dataclasses
import importlib
from collections.abc import Callable, Iterator
from typing import Any

MODULES = (
    "export",
    "common_way",
    "worker",
    "memory",
    "submit",
    "connect",
    "throughput",
    "growth",
    "cold_start",
    "cost",
)
"""Modules of this package; each has a function `run(bench)` that yields `Result`s, and a docstring
whose first line says what is compared."""


@dataclasses.dataclass(frozen=True)
class Benchmark:
    name: str
    title: str
    run: Callable[[Any], Iterator[Any]]


def load(names: list[str] | None = None) -> list[Benchmark]:
    """The benchmarks of these names, or all. Raises `KeyError` with the first unknown name."""
    for name in names or ():
        if name not in MODULES:
            raise KeyError(name)
    chosen = [name for name in MODULES if not names or name in names]
    return [_load(name) for name in chosen]


def _load(name: str) -> Benchmark:
    module = importlib.import_module(f"tests.benchmarks.{name}")
    title = (module.__doc__ or name).strip().splitlines()[0]
    return Benchmark(name, title, module.run)

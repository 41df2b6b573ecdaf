"""What a cold start of each function costs before its first line: import time and memory.

From the built layers with their byte code, in an isolated interpreter (`python -I -S`) that sees
nothing else but boto3, which Lambda brings along. Compared with the same without byte code. What
may not be imported at all is held by tests/contract/test_cold_start.py.
"""

import dataclasses
import functools
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator

from infra.bundling import LAYERS, ROOT, Bundle
from infra.local import install
from infra.targets import EMBEDDED
from tests.benchmarks.bench import Bench
from tests.benchmarks.measuring import Result, interleave, mebibytes

FUNCTIONS = ("api", "worker", "dispatcher", "purge", "migrate", "admin")
_SLOWEST = 8
_IMPORT = """
import json, sys, time
sys.path[:0] = json.loads(sys.argv[1])
began = time.perf_counter()
__import__(sys.argv[2])
seconds = time.perf_counter() - began
try:
    with open("/proc/self/status") as status:
        peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM:")) * 1024
except OSError:
    peak = 0
print(json.dumps({"seconds": seconds, "peak": peak, "modules": sorted(sys.modules)}))
"""


@dataclasses.dataclass(frozen=True)
class Imported:
    seconds: float
    peak: int
    """Bytes; 0 where the system does not say."""
    modules: tuple[str, ...]


class Cold:
    """The built functions and layers, as they lie under /var/task and /opt."""

    def __init__(self) -> None:
        bundle = Bundle(EMBEDDED)
        for name in FUNCTIONS:
            bundle.function(name)
        build = ROOT / ".build" / EMBEDDED.name
        self._functions = build / "functions"
        self._layers = [str(build / "layers" / layer / "python") for layer in LAYERS]
        [runtime] = install.EMULATOR.glob("lib/python*/site-packages")
        self._layers.append(str(runtime))

    def start(self, function: str, *options: str) -> Imported:
        found = json.loads(self._run(function, *options).stdout)
        return Imported(found["seconds"], found["peak"], tuple(found["modules"]))

    def slowest(self, function: str) -> list[tuple[str, float]]:
        """The packages that take longest with all that they import, in seconds, each once."""
        lines = self._run(function, "-X", "importtime").stderr.splitlines()
        taken: dict[str, float] = {}
        for line in lines:
            _, _, rest = line.partition("|")
            cumulative, _, name = rest.partition("|")
            if cumulative.strip().isdigit():
                package = ".".join(name.strip().split(".")[:2])
                taken[package] = max(taken.get(package, 0.0), int(cumulative) / 1e6)
        return sorted(taken.items(), key=lambda pair: -pair[1])[:_SLOWEST]

    def _run(self, function: str, *options: str) -> subprocess.CompletedProcess[str]:
        path = json.dumps([str(self._functions / function), *self._layers])
        handler = f"functions.{function}.handler"
        return subprocess.run(
            [sys.executable, "-I", "-S", *options, "-c", _IMPORT, path, handler],
            # The isolated interpreter ignores PYTHON*; the others are those every function has.
            env={"POWERTOOLS_METRICS_NAMESPACE": "JobPlatform", "POWERTOOLS_SERVICE_NAME": "x"},
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )


def run(bench: Bench) -> Iterator[Result]:
    bench.told("building the functions and layers")
    cold = Cold()
    with tempfile.TemporaryDirectory(dir=bench.folder) as nowhere:
        without = ("-B", "-X", f"pycache_prefix={nowhere}")
        for name in FUNCTIONS:
            peaks: list[float] = []
            samples = interleave(
                {
                    "with byte code": functools.partial(_seconds, cold, name, peaks),
                    "without": functools.partial(_seconds, cold, name, [], *without),
                },
                rounds=bench.rounds(5),
                told=lambda text, name=name: bench.told(f"{name}: {text}"),  # type: ignore[misc]
            )
            slowest = ", ".join(
                f"{package} {taken * 1e3:.0f}" for package, taken in cold.slowest(name)[1:5]
            )
            yield samples.result(
                f"cold start of {name}, byte code / none",
                "with byte code",
                "without",
                None,
                show=lambda value: f"{value * 1e3:.0f} ms",
                note=f"{mebibytes(max(peaks))}; ms: {slowest}",
            )


def _seconds(cold: Cold, name: str, peaks: list[float], *options: str) -> float:
    imported = cold.start(name, *options)
    peaks.append(imported.peak)
    return imported.seconds

"""Taking measurements fairly: interleaved rounds, medians, and a spread that hides nothing."""

import dataclasses
import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

Timed = Callable[[], float | None]
"""Does the work once. Answers the seconds it took, or None to have them measured from outside."""
Bound = Literal["at most", "at least"]


class NotMeasured(Exception):
    """Something that a benchmark needs is not on this machine; the text says what."""


@dataclasses.dataclass(frozen=True)
class Goal:
    """What a ratio has to be to hold."""

    value: float
    bound: Bound = "at most"

    def holds(self, ratio: float) -> bool:
        return ratio <= self.value if self.bound == "at most" else ratio >= self.value

    def __str__(self) -> str:
        return f"{'≤' if self.bound == 'at most' else '≥'} {self.value:g}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """One line of the table. Without a goal it is there to be known, not to be held."""

    name: str
    ratio: float
    goal: Goal | None
    spread: tuple[float, float]
    """The lowest and the highest ratio of a single round."""
    ours: str
    theirs: str
    note: str = ""
    samples: Mapping[str, Sequence[float]] = dataclasses.field(default_factory=dict)

    @property
    def holds(self) -> bool | None:
        return None if self.goal is None else self.goal.holds(self.ratio)

    def summary(self) -> dict[str, object]:
        """What goes into `build/bench.json`."""
        return {
            "name": self.name,
            "ratio": round(self.ratio, 4),
            "goal": None if self.goal is None else self.goal.value,
            "holds": self.holds,
            "spread": [round(value, 4) for value in self.spread],
        }


@dataclasses.dataclass(frozen=True)
class Samples:
    """Seconds (or any other quantity) of each way, one a round, in the order of the rounds."""

    values: Mapping[str, Sequence[float]]

    def median(self, name: str) -> float:
        return statistics.median(self.values[name])

    def result(
        self,
        name: str,
        ours: str,
        theirs: str,
        goal: Goal | None,
        *,
        show: Callable[[float], str] | None = None,
        note: str = "",
        inverse: bool = False,
    ) -> Result:
        """Compares two ways: ours / theirs, or with `inverse` how many times as fast ours is."""
        show = show or seconds
        above, below = (theirs, ours) if inverse else (ours, theirs)
        pairs = zip(self.values[above], self.values[below], strict=True)
        ratios = [one / other for one, other in pairs]
        return Result(
            name=name,
            ratio=self.median(above) / self.median(below),
            goal=goal,
            spread=(min(ratios), max(ratios)),
            ours=show(self.median(ours)),
            theirs=show(self.median(theirs)),
            note=note,
            samples={ours: self.values[ours], theirs: self.values[theirs]},
        )


def interleave(
    ways: Mapping[str, Timed], *, rounds: int, told: Callable[[str], None], warm: bool = True
) -> Samples:
    """Runs each way once a round, in turning order, so that what changes with time hits all alike.

    With `warm` a first round is not counted. `told` hears what is being done.
    """
    names = list(ways)
    values: dict[str, list[float]] = {name: [] for name in names}
    for number in range(-1 if warm else 0, rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            told(f"{'warming up' if number < 0 else f'round {number + 1} of {rounds}'}: {name}")
            taken = timed(ways[name])
            if number >= 0:
                values[name].append(taken)
    return Samples(values)


def timed(work: Timed) -> float:
    gc.collect()
    began = time.perf_counter()
    told = work()
    return time.perf_counter() - began if told is None else told


def seconds(value: float) -> str:
    if value < 0.1:
        return f"{value * 1e3:.2f} ms"
    return f"{value:.2f} s"


def per_second(value: float) -> str:
    return f"{value:.0f}/s"


def mebibytes(value: float) -> str:
    return f"{value / 2**20:.0f} MiB"

"""Ratios, goals and the files that `make bench` writes."""

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from rich.console import Console

from tests.benchmarks import plot, registry
from tests.benchmarks.measuring import Goal, Result, Samples, interleave
from tests.benchmarks.report import Report


def result(name: str = "a / b", ratio: float = 0.9, goal: Goal | None = None) -> Result:
    return Result(name=name, ratio=ratio, goal=goal, spread=(0.8, 1.1), ours="9 s", theirs="10 s")


def test_a_ratio_is_that_of_the_medians_and_its_spread_that_of_the_rounds() -> None:
    samples = Samples({"ours": [1.0, 2.0, 9.0], "theirs": [2.0, 4.0, 6.0]})

    found = samples.result("name", "ours", "theirs", Goal(0.6))

    assert found.ratio == 0.5
    assert found.spread == (0.5, 1.5)
    assert found.holds is True


def test_the_inverse_says_how_many_times_as_fast() -> None:
    samples = Samples({"ours": [1.0, 1.0], "theirs": [20.0, 10.0]})

    found = samples.result("name", "ours", "theirs", Goal(15, "at least"), inverse=True)

    assert found.ratio == 15
    assert found.spread == (10, 20)
    assert found.holds is True


@pytest.mark.parametrize(
    ("goal", "ratio", "holds"),
    [
        (Goal(1.0), 1.0, True),
        (Goal(1.0), 1.01, False),
        (Goal(15, "at least"), 15.0, True),
        (Goal(15, "at least"), 14.9, False),
        (None, 3.0, None),
    ],
)
def test_a_goal_holds_or_does_not(goal: Goal | None, ratio: float, holds: bool | None) -> None:
    assert result(ratio=ratio, goal=goal).holds is holds


def test_rounds_are_interleaved_in_turning_order_and_the_first_is_not_counted() -> None:
    order: list[str] = []

    def way(name: str, seconds: float) -> float:
        order.append(name)
        return seconds

    samples = interleave(
        {"a": lambda: way("a", 1.0), "b": lambda: way("b", 2.0)}, rounds=2, told=lambda _: None
    )

    assert order == ["b", "a", "a", "b", "b", "a"]
    assert samples.values == {"a": [1.0, 1.0], "b": [2.0, 2.0]}


def test_a_way_that_does_not_say_its_time_is_timed() -> None:
    samples = interleave({"a": lambda: None}, rounds=1, told=lambda _: None)

    assert 0 <= samples.values["a"][0] < 1


def test_the_files_say_what_was_measured(tmp_path: Path) -> None:
    with Report(Console(quiet=True)) as report:
        report.add(result("one <reader> / psql", goal=Goal(1.0)))
        report.add(result("known only"))
    report.finish(tmp_path / "build")

    first, second = json.loads((tmp_path / "build" / "bench.json").read_text())
    assert first == {
        "name": "one <reader> / psql",
        "ratio": 0.9,
        "goal": 1.0,
        "holds": True,
        "spread": [0.8, 1.1],
    }
    assert second["goal"] is None
    assert second["holds"] is None
    details = json.loads((tmp_path / "build" / "bench-details.json").read_text())
    assert [line["ours"] for line in details["results"]] == ["9 s", "9 s"]
    ElementTree.parse(tmp_path / "build" / "bench.svg")


def test_the_plot_draws_what_holds_to_the_left_of_the_goal() -> None:
    picture = plot.svg(
        [
            result(ratio=0.5, goal=Goal(1.0)),
            result(ratio=30, goal=Goal(15, "at least")),
            result(ratio=2.0, goal=Goal(1.0)),
        ]
    )

    bars = [
        element
        for element in ElementTree.fromstring(picture)
        if element.tag.endswith("rect") and element.get("height") != "100%"
    ]
    left = [float(bar.get("x", "")) for bar in bars]
    assert left[0] == left[1] < left[2]
    assert bars[0].get("fill") == bars[1].get("fill") != bars[2].get("fill")


def test_every_benchmark_can_be_named_and_has_a_title() -> None:
    everything = registry.load()

    assert [benchmark.name for benchmark in everything] == list(registry.MODULES)
    assert all(benchmark.title != benchmark.name for benchmark in everything)
    assert [benchmark.name for benchmark in registry.load(["cost", "export"])] == [
        "export",
        "cost",
    ]
    with pytest.raises(KeyError, match="nothing"):
        registry.load(["nothing"])

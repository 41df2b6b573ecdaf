"""The parts of the chaos harness that need no deployment."""

import argparse
import gzip
import pathlib

import pytest

import jobplatform
from tests.chaos import expected, ledger, options, plan, protections

SOURCES = {
    file.name: file.read_text() for file in pathlib.Path(jobplatform.__file__).parent.glob("*.py")
}


def test_one_seed_makes_one_plan() -> None:
    first, again, other = (
        plan.make(options.Options(seed=seed, jobs=200, minutes=1), "run") for seed in (1, 1, 2)
    )

    assert first == again != other
    assert {intent.client for intent in first} == set(plan.CLIENTS)
    assert sum(intent.hopeless for intent in first) < 20
    assert all(intent.at_once == 1 for intent in first if intent.key is None)


def test_options_come_from_the_command_line_or_from_variables() -> None:
    given = options.parse(["--template", 'mine:{"month": 3}'], {"SEED": "7", "JOBS": "20"})

    assert (given.seed, given.jobs) == (7, 20)
    assert given.templates == (options.Wanted(template="mine", parameters={"month": 3}),)
    assert options.parse(["--seed", "8"], {"SEED": "7"}).seed == 8


def test_templates_of_ones_own_replace_the_mix() -> None:
    wanted = options.Wanted(template="mine", parameters={"month": 3})
    intents = plan.make(options.Options(seed=1, jobs=50, minutes=1, templates=(wanted,)), "run")

    assert {intent.template for intent in intents} == {"mine"}
    assert not any(intent.hopeless for intent in intents)


@pytest.mark.parametrize("text", ["a-b", "mine:{", "mine:month"])
def test_a_template_that_cannot_be_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        options._wanted(text)


@pytest.mark.parametrize("name", sorted(protections.PROTECTIONS))
def test_every_removal_still_finds_what_it_takes_out(name: str) -> None:
    removal = protections.PROTECTIONS[name]

    changed = protections.apply(removal, SOURCES)

    assert set(changed) == {module for module, _, _ in removal.edits}
    for module, text in changed.items():
        compile(text, module, "exec")


def test_a_removal_that_finds_nothing_is_an_error() -> None:
    removal = protections.Removal(meaning="", edits=(("jobs.py", "no such text", ""),))

    with pytest.raises(LookupError, match="no such text"):
        protections.apply(removal, SOURCES)


def test_what_has_ended_may_not_be_seen_to_go_on() -> None:
    book = ledger.Ledger(plan.make(options.Options(seed=1, jobs=1, minutes=1), "run"))
    book.accepted(book.submissions[0], "job-1")
    book.seen("job-1", "running", asked=book.started)
    book.seen("job-1", "succeeded", asked=book.started)
    book.seen("job-1", "running", asked=book.started)
    assert book.violation_count == 0

    later = book._final["job-1"][1] + 1
    book.seen("job-1", "running", asked=later)

    assert book.violation_count == 1


def test_compressed_and_plain_content_compare_alike() -> None:
    assert expected.unpacked_sha256(gzip.compress(b"a,b\n"), "gzip") == expected.unpacked_sha256(
        b"a,b\n", "none"
    )

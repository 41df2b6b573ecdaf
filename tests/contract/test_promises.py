"""The page of promises names tests that exist, where it says they are."""

import re
from pathlib import Path

import pytest

from tests.chaos import protections

PAGE = Path(__file__).parents[2] / "docs" / "explanation" / "promises.md"
TESTS = re.findall(r"\[`(test_\w+)`\]\(([^)]+)\)", PAGE.read_text())


def test_the_page_names_tests() -> None:
    assert len(TESTS) > 20


@pytest.mark.parametrize(("name", "file"), TESTS)
def test_a_promise_has_its_test(name: str, file: str) -> None:
    assert f"\ndef {name}(" in (PAGE.parent / file).read_text()


@pytest.mark.parametrize("name", sorted(protections.PROTECTIONS))
def test_the_page_says_which_run_missed_a_protection(name: str) -> None:
    assert f"| `{name}` |" in PAGE.read_text()

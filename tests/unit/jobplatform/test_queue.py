"""Doorbells as text, and when they ring."""

import contextlib
import json
import math
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobplatform import queue


@given(st.uuids())
def test_a_doorbell_names_its_job(job_id: uuid.UUID) -> None:
    assert queue.parse(queue.body(job_id)) == job_id


def test_a_doorbell_of_the_version_before_is_understood() -> None:
    message = json.loads(queue.body(uuid.UUID(int=7)))
    message["version"] -= 1

    assert queue.parse(json.dumps(message)) == uuid.UUID(int=7)


def test_a_doorbell_may_say_more_than_this_version_knows() -> None:
    message = {**json.loads(queue.body(uuid.UUID(int=7))), "hint": "new"}

    assert queue.parse(json.dumps(message)) == uuid.UUID(int=7)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no JSON",
        "[]",
        "null",
        '"text"',
        "{}",
        '{"version": 1}',
        '{"version": 1, "job_id": null}',
        '{"version": 1, "job_id": 5}',
        '{"version": 1, "job_id": "no id"}',
        '{"version": 99, "job_id": "00000000-0000-0000-0000-000000000000"}',
        '{"job_id": "00000000-0000-0000-0000-000000000000"}',
    ],
)
def test_what_is_no_doorbell_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        queue.parse(text)


@given(st.text())
def test_any_text_is_a_doorbell_or_refused(text: str) -> None:
    with contextlib.suppress(ValueError):
        queue.parse(text)


@given(st.floats(min_value=-1e6, max_value=1e6))
def test_a_doorbell_never_rings_early_and_sqs_takes_its_delay(after: float) -> None:
    delay = queue.delay_seconds(after)

    assert 0 <= delay <= queue.MAX_DELAY_SECONDS
    assert delay >= min(after, queue.MAX_DELAY_SECONDS)
    assert delay == min(queue.MAX_DELAY_SECONDS, max(0, math.ceil(after)))

"""A job, its states, its delays and its keys."""

import datetime as dt
import re
import uuid
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobplatform import jobs
from jobplatform.jobs import FINAL, TRANSITIONS, JobStatus

DELAYS = (dt.timedelta(seconds=5), dt.timedelta(seconds=30), dt.timedelta(minutes=2))


def job(**changes: Any) -> jobs.Job:
    now = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    values: dict[str, Any] = dict.fromkeys(jobs.Job.__dataclass_fields__)
    values |= {
        "id": uuid.UUID(int=1),
        "client_id": uuid.UUID(int=2),
        "format": jobs.ResultFormat.CSV,
        "compression": jobs.Compression.NONE,
        "status": JobStatus.RUNNING,
        "created_at": now,
        "available_at": now,
        "rows_written": 0,
    }
    return jobs.Job(**{**values, **changes})


def test_every_state_has_its_transitions_and_a_sentence() -> None:
    assert set(TRANSITIONS) == set(JobStatus)
    reached = frozenset().union(*TRANSITIONS.values())
    assert reached == set(JobStatus)
    assert all(status not in targets for status, targets in TRANSITIONS.items())


def test_nothing_follows_a_result() -> None:
    assert TRANSITIONS[JobStatus.SUCCEEDED] == frozenset()


def test_only_an_operator_leaves_a_final_state_and_only_to_the_queue() -> None:
    for status in FINAL:
        assert TRANSITIONS[status] <= {JobStatus.QUEUED}


@pytest.mark.parametrize("attempts", [1, 2, 3])
def test_each_attempt_has_its_delay(attempts: int) -> None:
    assert jobs.retry_delay(attempts, DELAYS) == DELAYS[attempts - 1]


@pytest.mark.parametrize("attempts", [4, 5, 100])
def test_after_the_last_attempt_there_is_no_delay(attempts: int) -> None:
    assert jobs.retry_delay(attempts, DELAYS) is None


def test_without_delays_there_is_one_attempt() -> None:
    assert jobs.retry_delay(1, ()) is None


def test_ids_are_version_7_and_grow_with_time() -> None:
    made = [jobs.new_id() for _ in range(1_000)]

    assert {each.version for each in made} == {7}
    assert {each.variant for each in made} == {uuid.RFC_4122}
    assert len(set(made)) == 1_000
    milliseconds = [each.int >> 80 for each in made]
    assert milliseconds == sorted(milliseconds)


@given(st.integers(0, 10**12), st.none() | st.integers(0, 10**12))
def test_progress_is_between_0_and_99_while_a_job_runs(rows: int, estimate: int | None) -> None:
    percent = job(rows_written=rows, rows_estimated=estimate).percent

    assert percent is None if not estimate else percent is not None and 0 <= percent <= 99


@pytest.mark.parametrize(
    ("status", "percent"),
    [
        (JobStatus.QUEUED, None),
        (JobStatus.SUCCEEDED, 100),
        (JobStatus.FAILED, None),
        (JobStatus.CANCELLED, None),
    ],
)
def test_progress_of_a_job_that_does_not_run(status: JobStatus, percent: int | None) -> None:
    assert job(status=status, rows_written=5, rows_estimated=10).percent == percent


@pytest.mark.parametrize("format", list(jobs.ResultFormat))
@pytest.mark.parametrize("compression", list(jobs.Compression))
def test_the_key_of_a_result_names_client_job_and_attempt(
    format: jobs.ResultFormat, compression: jobs.Compression
) -> None:
    token = uuid.uuid4()
    key = jobs.result_key(job(format=format, compression=compression), token)

    assert key.startswith(jobs.attempt_prefix(uuid.UUID(int=2), uuid.UUID(int=1), token) + ".")
    assert re.fullmatch(rf"results/{uuid.UUID(int=2)}/{uuid.UUID(int=1)}/{token}\.\w+(\.gz)?", key)
    assert key.endswith(".gz") == (compression is jobs.Compression.GZIP)
    assert f".{format.extension}" in key

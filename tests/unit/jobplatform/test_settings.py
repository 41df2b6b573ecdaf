"""Settings: what infra writes is what a function reads."""

import datetime as dt
from typing import Any

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobplatform import settings
from jobplatform.settings import env_for

GROUPS = [
    group
    for group in vars(settings).values()
    if isinstance(group, type)
    and issubclass(group, settings.Settings)
    and group is not settings.Settings
]
ids = {"ids": lambda group: group.__name__}


@pytest.mark.parametrize("group", GROUPS, **ids)
def test_prefixes_tell_the_groups_apart(group: type[settings.Settings]) -> None:
    others = [each for each in GROUPS if each is not group]
    names = {group.variable(name) for name in group.model_fields}

    assert group.prefix.endswith("_")
    assert not names & {each.variable(name) for each in others for name in each.model_fields}


@pytest.mark.parametrize("group", GROUPS, **ids)
def test_every_setting_says_what_it_is(group: type[settings.Settings]) -> None:
    assert group.__doc__
    for name, field in group.model_fields.items():
        if field.annotation is dt.timedelta:
            assert not name.endswith(("_seconds", "_minutes", "_ms")), "durations carry their unit"


@pytest.mark.parametrize("group", GROUPS, **ids)
def test_defaults_go_out_and_come_back(group: type[settings.Settings]) -> None:
    needed: dict[str, Any] = {
        name: "value" for name, field in group.model_fields.items() if field.is_required()
    }
    whole = group(**needed)
    values = {name: getattr(whole, name) for name in group.model_fields}

    environment = env_for(group, **values)

    assert all(isinstance(value, str) for value in environment.values())
    assert group.from_env(environment) == whole


@given(
    st.lists(
        st.timedeltas(min_value=dt.timedelta(microseconds=1), max_value=dt.timedelta(days=999)),
        max_size=5,
    ),
    st.timedeltas(min_value=dt.timedelta(microseconds=1), max_value=dt.timedelta(days=999)),
)
def test_durations_go_out_and_come_back(delays: list[dt.timedelta], lease: dt.timedelta) -> None:
    environment = env_for(settings.JobSettings, retry_delays=tuple(delays), lease=lease)

    found = settings.JobSettings.from_env(environment)

    assert (found.retry_delays, found.lease) == (tuple(delays), lease)


def test_durations_are_iso_8601_in_the_environment() -> None:
    written = env_for(settings.JobSettings, lease=dt.timedelta(seconds=90))

    assert written == {"JOBS_LEASE": "PT1M30S"}
    assert settings.JobSettings.from_env({"JOBS_LEASE": "P1DT2H"}).lease == dt.timedelta(
        days=1, hours=2
    )


def test_what_is_not_there_or_empty_is_its_default() -> None:
    assert settings.JobSettings.from_env({}) == settings.JobSettings()
    assert settings.JobSettings.from_env({"JOBS_LEASE": ""}) == settings.JobSettings()


def test_what_is_needed_and_not_there_is_named() -> None:
    with pytest.raises(pydantic.ValidationError, match="bucket"):
        settings.ResultSettings.from_env({})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("JOBS_LEASE", "soon"),
        ("JOBS_LEASE", "PT0S"),
        ("JOBS_LEASE", "-PT5S"),
        ("JOBS_RETRY_DELAYS", '["PT0S"]'),
        ("JOBS_RETRY_DELAYS", '"PT5S"'),
    ],
)
def test_values_that_are_not_allowed_are_refused(name: str, value: str) -> None:
    with pytest.raises(pydantic.ValidationError):
        settings.JobSettings.from_env({name: value})


def test_retries_can_be_switched_off() -> None:
    assert settings.JobSettings.from_env({"JOBS_RETRY_DELAYS": "[]"}).retry_delays == ()


def test_parts_are_not_smaller_than_s3_allows() -> None:
    with pytest.raises(pydantic.ValidationError):
        settings.WorkerSettings.from_env({"WORKER_PART_BYTES": str(5 * 2**20 - 1)})


def test_writing_an_unknown_name_fails_when_the_stack_is_made() -> None:
    with pytest.raises(ValueError, match="has no setting leese"):
        env_for(settings.JobSettings, leese=dt.timedelta(seconds=5))


def test_writing_less_than_is_needed_fails_when_the_stack_is_made() -> None:
    with pytest.raises(pydantic.ValidationError, match="bucket"):
        env_for(settings.ResultSettings, url_ttl=dt.timedelta(minutes=1))


def test_what_a_deployment_will_fill_in_passes_as_text() -> None:
    """Tokens of the CDK look like this until the template is written."""
    token = "${Token[TOKEN.123]}"

    assert env_for(settings.QueueSettings, url=token) == {"QUEUE_URL": token}


def test_none_is_left_out() -> None:
    assert env_for(settings.QueueSettings, url="u", dead_letter_url=None) == {"QUEUE_URL": "u"}


def test_settings_do_not_change() -> None:
    with pytest.raises(pydantic.ValidationError):
        settings.JobSettings().lease = dt.timedelta(seconds=1)  # type: ignore[misc]

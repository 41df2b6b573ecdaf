"""What a person can get wrong with `-c name=value` is said in words, before anything is built."""

from typing import Any

import pytest

from infra.options import Options
from infra.targets import AWS, EMBEDDED, TARGETS, target_named
from jobplatform import settings


def read(target: Any = EMBEDDED, **context: Any) -> Options:
    return Options.from_context(context.get, target)


def test_without_anything_said_the_defaults_hold() -> None:
    assert read() == Options()


def test_settings_come_as_json_from_the_command_line_and_as_an_object_from_a_file() -> None:
    from_text = read(settings='{"RESULTS_TTL": "P1D"}')

    assert from_text == read(settings={"RESULTS_TTL": "P1D"})
    assert from_text.settings == {"RESULTS_TTL": "P1D"}


@pytest.mark.parametrize(
    ("context", "complaint"),
    [
        ({"settings": "{"}, "is not JSON"),
        ({"settings": "[]"}, "object of texts"),
        ({"settings": {"RESULTS_TTL": 1}}, "object of texts"),
        ({"settings": {"RESULT_TTL": "P1D"}}, "no setting RESULT_TTL"),
        ({"data_database_secret_arn": "arn"}, "needs data_database_url"),
    ],
)
def test_mistakes_are_named(context: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        read(**context)


def test_a_database_url_is_refused_where_the_target_makes_a_database() -> None:
    with pytest.raises(ValueError, match="makes its own database"):
        read(AWS, database_url="postgresql://elsewhere/jobs")


def test_what_breaks_things_on_purpose_is_refused_on_aws() -> None:
    fault = {settings.FaultSettings.variable(next(iter(settings.FaultSettings.model_fields))): "x"}

    assert read(EMBEDDED, settings=fault).settings == fault
    with pytest.raises(ValueError, match="breaks things on purpose"):
        read(AWS, settings=fault)


def test_targets_are_found_by_name() -> None:
    assert {name: target_named(name) for name in TARGETS} == TARGETS
    with pytest.raises(ValueError, match=r"no target 'azure'.*embedded, localstack, aws"):
        target_named("azure")


def test_faults_are_for_emulators_only() -> None:
    given = {"FAULTS_FILE": "/tmp/faults.json"}

    assert read(settings=given).settings == given
    with pytest.raises(ValueError, match="not for the target aws"):
        read(AWS, settings=given)

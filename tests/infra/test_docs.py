"""The page on the infrastructure names everything that a person can set, read or be woken by."""

import dataclasses

from infra.bundling import ROOT
from infra.options import Options
from infra.targets import Target
from tests.infra.conftest import Synthesized

PAGE = (ROOT / "docs" / "reference" / "infrastructure.md").read_text()


def test_every_field_of_a_target_is_explained() -> None:
    fields = {field.name for field in dataclasses.fields(Target)} - {"name"}

    assert {field for field in fields if f"| `{field}` |" not in PAGE} == set()


def test_every_context_value_is_explained() -> None:
    names = {field.name for field in dataclasses.fields(Options)} | {"target"}

    assert {name for name in names if f"| `{name}` |" not in PAGE} == set()


def test_every_output_is_named(aws_target: Synthesized) -> None:
    assert {name for name in aws_target.service.outputs if f"`{name}`" not in PAGE} == set()


def test_every_alarm_says_what_to_do(aws_target: Synthesized) -> None:
    # A logical id is the construct's path and a hash of eight characters.
    alarms = {
        name.removeprefix("Alarms").removeprefix("Jobs")[:-8]
        for name in aws_target.service.all("AWS::CloudWatch::Alarm")
    }

    assert {alarm for alarm in alarms if f"`{alarm}`" not in PAGE} == set()


def test_every_function_is_listed(aws_target: Synthesized) -> None:
    handlers = {
        function["Handler"].split(".")[1]
        for function in aws_target.service.all("AWS::Lambda::Function").values()
    }

    assert {name for name in handlers if f"| `{name}` |" not in PAGE} == set()

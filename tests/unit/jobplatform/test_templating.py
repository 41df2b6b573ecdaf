"""Templates as adopters write them, and how their files are found."""

import datetime as dt
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pydantic
import pytest
import sqlalchemy as sa

import templates
from jobplatform import errors, templating
from jobplatform.templating import Column, Params, Template

GOOD = '''"""Orders by day

What was ordered, and
for how much.
"""
import sqlalchemy as sa
from jobplatform.templating import Params, Template

orders = sa.table("orders", sa.column("id", sa.BigInteger))
template = Template(params=Params, query=lambda params: sa.select(orders), order=("id",))
'''

AddFile = Callable[[str, str], None]


@pytest.fixture
def add_file(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[AddFile]:
    """Puts a file beside the templates that are there."""
    monkeypatch.setattr(templates, "__path__", [*templates.__path__, str(tmp_path)])
    added: list[str] = []
    _forget()

    def add(name: str, text: str) -> None:
        (tmp_path / f"{name}.py").write_text(text)
        added.append(name)

    yield add
    for name in added:
        sys.modules.pop(f"templates.{name}", None)
    _forget()


def _forget() -> None:
    templating.catalogue.cache_clear()
    templating._load.cache_clear()


def test_a_file_is_a_template_named_after_it(add_file: AddFile) -> None:
    add_file("orders_by_day", GOOD)

    found = templating.get("orders_by_day")

    assert (found.name, found.title) == ("orders_by_day", "Orders by day")
    assert found.description == "What was ordered, and for how much."
    assert templating.catalogue()["orders_by_day"] is found
    assert found.result_columns() == (Column("id", "bigint"),)


def test_a_file_without_a_docstring_goes_by_its_name(add_file: AddFile) -> None:
    add_file("bare", GOOD.split('"""')[2])

    assert templating.get("bare").title == "bare"


@pytest.mark.parametrize(
    "name",
    [
        "no_such",
        "",
        ".",
        "..",
        "../flights",
        "flights.py",
        "templates.flights",
        "_private",
        "FLIGHTS",
    ],
)
def test_a_name_that_is_no_file_is_not_found(add_file: AddFile, name: str) -> None:
    add_file("_private", GOOD)

    with pytest.raises(errors.TemplateNotFound):
        templating.get(name)


def test_files_that_begin_with_an_underscore_are_not_templates(add_file: AddFile) -> None:
    add_file("_shared", "x = 1\n")

    assert "_shared" not in templating.catalogue()


def test_a_file_that_has_no_template_stops_the_catalogue_and_is_named(add_file: AddFile) -> None:
    add_file("forgotten", "x = 1\n")

    with pytest.raises(TypeError, match=r"templates/forgotten\.py has no `template"):
        templating.catalogue()


def test_a_broken_file_does_not_stop_the_others_from_running(add_file: AddFile) -> None:
    add_file("broken", "raise RuntimeError('broken')\n")

    assert templating.get("flights").name == "flights"


def _select(params: Any) -> sa.Select[Any]:
    return sa.select(sa.literal(1).label("one"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "either a query or rows"),
        ({"query": _select, "rows": lambda params, read: ()}, "either a query or rows"),
        ({"rows": lambda params, read: ()}, "names its columns"),
        ({"query": _select, "order": ("id",), "split_by": "day"}, "split_by"),
        ({"query": _select, "split_by": "id"}, "split_by"),
    ],
)
def test_a_template_that_makes_no_sense_is_refused_where_it_is_written(
    fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(TypeError, match=message):
        Template(params=Params, **fields)


class Range(Params):
    start: dt.date
    """First day."""
    days: int = 7
    """How many."""


def test_unknown_and_wrong_parameters_are_refused() -> None:
    template = Template(params=Range, query=_select)

    for wrong in ({}, {"start": "soon"}, {"start": "2026-01-01", "end": 1}):
        with pytest.raises(pydantic.ValidationError):
            template.parse(wrong)


def test_the_schema_says_what_each_parameter_means() -> None:
    schema = Template(params=Range, query=_select).schema()

    assert schema["properties"]["start"]["description"] == "First day."
    assert schema["required"] == ["start"]
    assert schema["additionalProperties"] is False


def test_parameters_cannot_be_changed_once_they_are_checked() -> None:
    checked: Any = Template(params=Range, query=_select).parse({"start": "2026-01-01"})

    with pytest.raises(pydantic.ValidationError):
        checked.days = 8


@pytest.mark.parametrize(
    "error",
    [ValueError("no default will do"), AttributeError("'NoneType' object has no attribute")],
)
def test_columns_of_a_query_that_refuses_its_defaults_are_not_known_beforehand(
    error: Exception,
) -> None:
    def query(params: Params) -> sa.Select[Any]:
        raise error

    assert Template(params=Params, query=query).result_columns() == ()


def test_columns_of_a_query_that_needs_parameters_are_not_known_beforehand() -> None:
    assert Template(params=Range, query=_select).result_columns() == ()


def test_declared_columns_are_taken_as_they_are() -> None:
    columns = (Column("a", "text"),)

    template = Template(params=Range, rows=lambda params, read: (), columns=columns)

    assert template.result_columns() == columns


def test_a_snapshot_is_not_kept_for_ever_unless_the_template_says_so() -> None:
    query = templating.get("flights").query

    assert Template(params=Params, query=query).max_snapshot_age == dt.timedelta(hours=4)
    assert Template(params=Params, query=query, max_snapshot_age=None).max_snapshot_age is None

"""Every file in `templates/` keeps the rules of a template; yours too, with no test of its own."""

from typing import Any

import pydantic
import pytest
import sqlalchemy as sa

from jobplatform import settings, templating
from tests.helpers import template_contract

NAMES = sorted(templating.catalogue())

each_template = pytest.mark.parametrize("name", NAMES)


@each_template
def test_clients_can_read_what_it_is(name: str) -> None:
    template_contract.check_description(templating.get(name))


@each_template
def test_unknown_parameters_are_refused(name: str) -> None:
    template_contract.check_parameters(templating.get(name))


@each_template
def test_its_columns_have_names_and_types(name: str) -> None:
    template_contract.check_columns(templating.get(name))


@each_template
def test_it_runs_on_the_sample_data_in_an_order_that_is_unique(
    name: str, data: settings.DataDatabaseSettings
) -> None:
    if template_contract.check_on_data(templating.get(name), data) is None:
        pytest.skip("it needs parameters")


class Lenient(pydantic.BaseModel):
    """Takes whatever it is given."""


TABLE = sa.table("flights", sa.column("tailnum", sa.Text), sa.column("carrier", sa.Text))
SOUND: dict[str, Any] = {
    "name": "made_up",
    "title": "Title",
    "description": "What it shows.",
    "params": templating.Params,
    "query": lambda params: sa.select(TABLE).limit(1_000),
}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"title": "made_up"}, "docstring"),
        ({"description": ""}, "what the report shows"),
        ({"params": Lenient}, "unknown parameters"),
        ({"query": lambda params: sa.select(sa.column("carrier"))}, "has no type"),
        ({"query": lambda params: sa.select(TABLE, TABLE.c.carrier)}, "one name"),
        ({"order": ("id",)}, "what is no column"),
        ({"order": ("carrier",)}, "not unique"),
        ({"order": ("tailnum",), "query": lambda params: sa.select(TABLE)}, "can be NULL"),
        ({"query": lambda params: sa.select(TABLE).where(sa.false())}, "no rows"),
    ],
)
def test_a_template_that_breaks_a_rule_is_told_which(
    change: dict[str, Any], complaint: str, data: settings.DataDatabaseSettings
) -> None:
    template = templating.Template(**{**SOUND, **change})

    with pytest.raises(AssertionError, match=complaint):
        template_contract.check(template, data)

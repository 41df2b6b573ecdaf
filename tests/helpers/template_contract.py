"""What every template has to keep, whoever wrote it."""

import datetime as dt

import pydantic

from jobplatform import export, settings, sqltext
from jobplatform.jobs import ResultFormat
from jobplatform.templating import Column, Template

TITLE_LENGTH = 80
_TIMEOUT = dt.timedelta(seconds=60)


def check(template: Template, address: settings.DataDatabaseSettings) -> int | None:
    """All of it; the number of rows, None where it needs parameters."""
    check_description(template)
    check_parameters(template)
    check_columns(template)
    return check_on_data(template, address)


def check_description(template: Template) -> None:
    """Clients read in the catalogue what it is, what it takes and what it gives."""
    where = f"templates/{template.name}.py"
    assert template.title != template.name, f"{where}: begin it with a docstring, title first"
    assert len(template.title) <= TITLE_LENGTH, f"{where}: the title is too long"
    assert template.description, f"{where}: say below the title what the report shows"
    for name, schema in template.schema().get("properties", {}).items():
        assert schema.get("description"), f"{where}: say below {name} what it means"


def check_parameters(template: Template) -> None:
    """A misspelled parameter is refused, not ignored."""
    try:
        template.parse({"no such parameter": 1})
    except pydantic.ValidationError as error:
        refused = {detail["type"] for detail in error.errors()}
        assert "extra_forbidden" in refused, (
            f"templates/{template.name}.py: derive Params from jobplatform.templating.Params"
        )
    else:
        raise AssertionError(f"templates/{template.name}.py takes unknown parameters")


def check_columns(template: Template) -> None:
    """Named once each, with a type, the order's among them."""
    where = f"templates/{template.name}.py"
    columns = template.result_columns()
    names = [column.name for column in columns]
    assert len(set(names)) == len(names), f"{where}: two columns have one name"
    for column in columns:
        assert column.name, f"{where}: a column has no name; give it a label"
        assert column.type != "unknown", f"{where}: {column.name} has no type; give it one"
    if columns:
        assert set(template.order) <= set(names), f"{where}: order names what is no column"


def check_on_data(template: Template, address: settings.DataDatabaseSettings) -> int | None:
    """Runs it as a job would, without parameters; None where it needs some. The number of rows."""
    try:
        params = template.parse({})
    except pydantic.ValidationError:
        return None
    rows = 0

    def count(block: bytes, more: int, last: bytes) -> None:
        nonlocal rows
        rows += more

    with export.Export(
        address, template, params, format=ResultFormat.CSV, statement_timeout=_TIMEOUT
    ) as exported:
        exported.prepare()
        exported.run(count)
        columns = exported.columns
    assert rows, f"templates/{template.name}.py gives no rows on the sample data"
    assert _names(columns) == _names(template.result_columns())
    _check_order(template, params, address)
    return rows


def _names(columns: tuple[Column, ...]) -> list[str]:
    return [column.name for column in columns]


def _check_order(
    template: Template, params: pydantic.BaseModel, address: settings.DataDatabaseSettings
) -> None:
    """A long export goes on behind its last row, which has to be one place and no other."""
    if not template.order or template.query is None:
        return
    keys = ", ".join(f"q.{sqltext.identifier(name)}" for name in template.order)
    query = sqltext.select(template.query(params).order_by(None))
    with export.Session(address, statement_timeout=_TIMEOUT) as session:
        total, different, empty = session.connection.run(
            f"SELECT count(*), count(DISTINCT ({keys})), count(*) FILTER (WHERE NOT ({keys}) IS NOT"
            f" NULL) FROM ({query}) AS q"
        )[0]
    where = f"templates/{template.name}.py"
    assert empty == 0, f"{where}: a column of order can be NULL"
    assert different == total, f"{where}: the columns of order are not unique together"

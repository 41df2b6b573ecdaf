"""What an adopter writes: a template, one file in `templates/`, and how those files are found."""

import dataclasses
import datetime as dt
import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import pydantic
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg

from jobplatform import errors

Consistency = Literal["snapshot", "live"]
Read = Callable[[sa.Select[Any]], Iterator[Sequence[Any]]]


class Params(pydantic.BaseModel):
    """Base of a template's parameters: unknown names are refused, fields' docstrings are shown."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of the result; `type` is the PostgreSQL name of its type."""

    name: str
    type: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Template:
    """A report: its parameters, and either a `query` or a Python generator of `rows`.

    `query(params)` answers a SQLAlchemy select; its rows never pass through Python, so it runs at
    the speed of the database. `rows(params, read)` yields rows for what SQL cannot say;
    `read(select)` streams a select from the same snapshot. Raise `ValueError` in either to refuse
    parameters for good.
    """

    params: type[pydantic.BaseModel]
    query: Callable[[Any], sa.Select[Any]] | None = None
    rows: Callable[[Any, Read], Iterable[Sequence[Any]]] | None = None
    columns: tuple[Column, ...] = ()
    """Of the result; taken from the query where there is one."""
    version: str = "1"
    """Change it when the same parameters give another result."""
    order: tuple[str, ...] = ()
    """Columns that are together unique and never NULL, and by which the query's rows can be sorted:
    what a long export continues by."""
    split_by: str | None = None
    """The first of `order`, an indexed integer: a large result is then read in ranges of it, two at
    a time."""
    consistency: Consistency = "snapshot"
    """`snapshot`: one point in time, whatever happens. `live`: a continuation may see more."""
    statement_timeout: dt.timedelta | None = None
    max_snapshot_age: dt.timedelta | None = dt.timedelta(hours=4)
    """For how long an export may keep its snapshot, over all its invocations; None: as long as it
    needs. While it does, the database cannot remove rows that died since."""
    max_rows: int | None = None
    max_bytes: int | None = None
    name: str = ""
    """The file's name; set when it is found."""
    title: str = ""
    description: str = ""
    """First line and rest of the module's docstring; set when it is found."""

    def __post_init__(self) -> None:
        if (self.query is None) == (self.rows is None):
            raise TypeError("a template has either a query or rows")
        if self.split_by is not None and self.order[:1] != (self.split_by,):
            raise TypeError("split_by has to be the first column of order")
        if self.rows is not None and not self.columns:
            raise TypeError("a template with rows names its columns")

    def parse(self, parameters: Mapping[str, Any]) -> pydantic.BaseModel:
        """Raises `pydantic.ValidationError`."""
        return self.params.model_validate(dict(parameters))

    def result_columns(self) -> tuple[Column, ...]:
        """The declared columns, else those of the query for the parameters' defaults, else none."""
        if self.columns or self.query is None:
            return self.columns
        try:
            selected = self.query(self.params()).selected_columns
            return tuple(Column(column.key or "", _type_name(column.type)) for column in selected)
        except Exception:
            # Also what its own code says of the defaults: one template does not hide the others.
            return ()

    def schema(self) -> dict[str, Any]:
        """JSON Schema of the parameters."""
        return self.params.model_json_schema()


@functools.cache
def catalogue() -> Mapping[str, Template]:
    """Every template by name: each module of the package `templates` that has a `template`.

    A file without one is an error of its author and stops the catalogue, rather than be missed in
    silence.
    """
    import templates

    return {name: _load(name) for name in _names(tuple(templates.__path__))}


def get(name: str) -> Template:
    """Raises `errors.TemplateNotFound`. Loads this one template only."""
    import templates

    if name not in _names(tuple(templates.__path__)):
        raise errors.TemplateNotFound(f"There is no template {name!r}; GET /templates lists them.")
    return _load(name)


@functools.cache
def _names(folders: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for _, name, _ in pkgutil.iter_modules(folders) if not name.startswith("_"))


@functools.cache
def _load(name: str) -> Template:
    module = importlib.import_module(f"templates.{name}")
    template = getattr(module, "template", None)
    if not isinstance(template, Template):
        raise TypeError(f"templates/{name}.py has no `template = Template(...)`")
    title, _, description = inspect.cleandoc(module.__doc__ or name).partition("\n")
    return dataclasses.replace(
        template, name=name, title=title.strip(), description=" ".join(description.split())
    )


def _type_name(type_: sa.types.TypeEngine[Any]) -> str:
    if isinstance(type_, sa.types.NullType):
        return "unknown"
    return type_.compile(dialect=pg.base.PGDialect()).lower()

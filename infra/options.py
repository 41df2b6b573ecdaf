"""What the person who deploys says with `-c name=value`, checked before anything is built."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any

from infra.targets import Target
from jobplatform import settings
from jobplatform.settings import FaultSettings


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    prefix: str = "JobPlatform"
    """Start of the stacks' names; another one makes a second, separate installation."""
    database_url: str | None = None
    """The platform's own tables, where the target does not make a database."""
    data_database_url: str | None = None
    """The adopter's data; None: in the platform's database."""
    data_database_secret_arn: str | None = None
    """Secrets Manager secret with `username` and `password` for `data_database_url`."""
    settings: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Further settings of the functions by the names of their variables, such as `RESULTS_TTL`."""
    alarm_email: str | None = None
    """Who is told of alarms."""

    @classmethod
    def from_context(cls, read: Callable[[str], Any], target: Target) -> "Options":
        """Reads the context values; raises `ValueError` that says which one is wrong."""
        given = {field.name: read(field.name) for field in dataclasses.fields(cls)}
        given["settings"] = _checked_settings(given["settings"])
        options = cls(**{name: value for name, value in given.items() if value is not None})
        if target.database is not None and options.database_url is not None:
            raise ValueError(
                f"The target {target.name} makes its own database; leave database_url away, or set"
                f" `database` of the target to None in infra/targets.py."
            )
        if not target.faults and any(
            name.startswith(FaultSettings.prefix) for name in options.settings
        ):
            raise ValueError(
                f"{FaultSettings.prefix}… breaks things on purpose and is not for the target"
                f" {target.name}."
            )
        if options.data_database_secret_arn is not None and options.data_database_url is None:
            raise ValueError("data_database_secret_arn needs data_database_url beside it.")
        return options


def _checked_settings(given: Any) -> dict[str, str] | None:
    if given is None:
        return None
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except json.JSONDecodeError as error:
            raise ValueError(f"The context value settings is not JSON: {error}") from error
    if not isinstance(given, dict) or not all(isinstance(value, str) for value in given.values()):
        raise ValueError('The context value settings is an object of texts: {"RESULTS_TTL": "P1D"}')
    known = {
        group.variable(name)
        for group in settings.Settings.__subclasses__()
        for name in group.model_fields
    }
    unknown = sorted(given.keys() - known)
    if unknown:
        raise ValueError(
            f"There is no setting {', '.join(unknown)}; see docs/reference/settings.md."
        )
    return given

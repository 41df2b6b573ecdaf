"""The environment variables of a function, from the groups of settings that it reads."""

import dataclasses
from collections.abc import Mapping

from jobplatform.settings import Settings, env_for


@dataclasses.dataclass(frozen=True)
class Environment:
    """All values known at synth; `of` picks a function's and checks that it can read them."""

    groups: Mapping[type[Settings], Mapping[str, str]]
    overrides: Mapping[str, str]

    @classmethod
    def of_values(
        cls, values: Mapping[type[Settings], Mapping[str, object]], overrides: Mapping[str, str]
    ) -> "Environment":
        return cls({group: env_for(group, **given) for group, given in values.items()}, overrides)

    def of(self, *groups: type[Settings]) -> dict[str, str]:
        variables: dict[str, str] = {}
        for group in groups:
            variables |= self.groups.get(group, {})
            names = {group.variable(name) for name in group.model_fields}
            variables |= {name: text for name, text in self.overrides.items() if name in names}
        for group in groups:
            group.from_env(variables)
        return variables

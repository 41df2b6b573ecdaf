"""Named points between side effects, where tests make the platform fail; unreachable otherwise."""

from collections.abc import Callable

_act: Callable[[str], None] | None = None


def point(name: str) -> None:
    """Does nothing, unless faults were switched on."""
    if _act is not None:
        _act(name)

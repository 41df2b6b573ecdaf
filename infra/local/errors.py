"""What can go wrong on a person's machine, said in words that tell what to do."""

from pathlib import Path


class LocalError(Exception):
    """A message for the person at the terminal: what happened and what to do."""


def tail(log: Path, lines: int = 15) -> str:
    """The last lines of a log, indented, for the end of an error message."""
    try:
        text = log.read_text(errors="replace")
    except OSError:
        return f"  ({log} cannot be read)"
    last = text.splitlines()[-lines:]
    return "\n".join(f"  {line}" for line in last) or f"  ({log} is empty)"

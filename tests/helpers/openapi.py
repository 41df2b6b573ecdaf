"""docs/openapi.json: `python -m tests.helpers.openapi` (`make openapi`) writes it anew."""

import json
import tomllib
from pathlib import Path

from functions.api import handler, openapi

_ROOT = Path(__file__).parents[2]
PATH = _ROOT / "docs" / "openapi.json"


def committed_text() -> str:
    """What the file has to say: the code's document, for people to read and compare."""
    version = tomllib.loads((_ROOT / "pyproject.toml").read_text())["project"]["version"]
    document = openapi.document(handler.app, version)
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    PATH.write_text(committed_text())
    print(f"wrote {PATH.relative_to(_ROOT)}")

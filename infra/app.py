"""The CDK app: reads target and options, makes the two stacks; `cdk` runs it by cdk.json."""

import json
import pathlib
import sys
import tomllib
from collections.abc import Mapping
from typing import Any

from aws_cdk import App

from infra.bundling import ROOT, Bundle
from infra.options import Options
from infra.stacks.data import DataStack
from infra.stacks.service import ServiceStack
from infra.targets import target_named
from jobplatform.settings import ResultSettings


def build(
    context: Mapping[str, Any] | None = None,
    *,
    root: pathlib.Path = ROOT,
    outdir: pathlib.Path | None = None,
) -> App:
    """The app with cdk.json's context, under `context`, under what the `cdk` command was given."""
    defaults = json.loads((ROOT / "cdk.json").read_text())["context"]
    app = App(
        context={**defaults, **(context or {})}, outdir=str(outdir) if outdir is not None else None
    )
    target = target_named(app.node.get_context("target"))
    options = Options.from_context(app.node.try_get_context, target)
    results = ResultSettings.from_env({**options.settings, "RESULTS_BUCKET": "not known yet"})
    bundle = Bundle(target, root=root)
    if not bundle.has_byte_code:
        # No annotation: `--strict` would take it for an error.
        print(
            f"No {target.runtime} on the PATH, so the functions go without byte code and start more"
            " slowly. Put it on the PATH, or run this with it.",
            file=sys.stderr,
        )
    data = DataStack(
        app,
        f"{options.prefix}Data",
        target=target,
        options=options,
        keep_results_for=results.ttl + results.purge_grace,
    )
    ServiceStack(
        app,
        f"{options.prefix}Service",
        target=target,
        options=options,
        data=data,
        bundle=bundle,
        version=tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"],
    )
    return app


if __name__ == "__main__":
    try:
        build().synth()
    except ValueError as error:
        sys.exit(str(error))

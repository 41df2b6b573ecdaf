"""The steps of a deployment onto the emulator, each a command that can run beside the others."""

import json
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from infra.local import cdk, paths
from infra.local.errors import LocalError
from infra.local.ministack import ACCOUNT, REGION, RunningMiniStack
from infra.local.processes import Command

SERVICE_STACK = "JobPlatformService"


class Deployment:
    """Deploys the CDK app with the given context; everything it writes goes to `folder`."""

    def __init__(
        self, folder: Path, emulator: RunningMiniStack, *, context: Mapping[str, str]
    ) -> None:
        self._folder = folder
        self._emulator = emulator
        self._context = context

    def bootstrap(self) -> Command:
        return self._command(
            "cdk bootstrap",
            "bootstrap.log",
            # A folder of its own: the usual one is locked while anybody else synthesizes.
            cdk.command(
                *("bootstrap", f"aws://{ACCOUNT}/{REGION}"),
                *("--output", self._folder / "bootstrap.out"),
            ),
        )

    def synth(self) -> Command:
        """Makes the templates, without the CDK's own command: that saves its start."""
        return self._command(
            "The synthesis of the CDK app",
            "synth.log",
            [sys.executable, "-m", "infra.app"],
            # Not as arguments, which every user of the machine can read: there is a password in it.
            CDK_CONTEXT_JSON=json.dumps(dict(self._context)),
            CDK_OUTDIR=str(self._folder / "cdk.out"),
            CDK_DEFAULT_ACCOUNT=ACCOUNT,
            CDK_DEFAULT_REGION=REGION,
        )

    def deploy(self) -> Command:
        return self._command(
            "cdk deploy",
            "deploy.log",
            cdk.command(
                *("deploy", "--all", "--app", self._folder / "cdk.out"),
                *("--require-approval", "never", "--progress", "events", "--no-color"),
                *("--outputs-file", self._folder / "outputs.json"),
            ),
        )

    def outputs(self) -> dict[str, str]:
        """The outputs of the service stack; `ApiUrl` as the emulator serves it."""
        stacks = json.loads((self._folder / "outputs.json").read_text())
        try:
            outputs = dict(stacks[SERVICE_STACK])
            outputs["ApiUrl"] = self._reachable(outputs["ApiUrl"])
        except KeyError as error:
            raise LocalError(f"The deployment has no output {error}; it has {stacks}.") from None
        return outputs

    def _reachable(self, api_url: str) -> str:
        """AWS names `<id>.execute-api.<region>`; the emulator serves the same under a path."""
        api_id = (urlsplit(api_url).hostname or "").partition(".")[0]
        return f"{self._emulator.endpoint_url}/restapis/{api_id}/prod/_user_request_"

    def _command(self, what: str, log: str, arguments: list[str | Path], **environ: str) -> Command:
        return Command(
            arguments,
            what=what,
            log=self._folder / log,
            cwd=paths.ROOT,
            environ=cdk.environ({**self._emulator.environ(), **environ}),
        )


def resources_done(report: Callable[[str], None]) -> Callable[[str], None]:
    """Turns the lines of `cdk deploy` into `JobPlatformService 12/47`, for a person who waits."""

    def watch(line: str) -> None:
        found = re.match(r"(\S+) +\| +(\d+)/(\d+) ", line)
        if found is not None:
            report("{} {}/{}".format(*found.groups()))

    return watch

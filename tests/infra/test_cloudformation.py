"""The templates against CloudFormation's own schemas: AWS refuses properties that emulators ignore."""

import json
import subprocess
import sys

from tests.infra.conftest import Synthesized

# Two habits of the CDK, without effect: it names dependencies that a reference implies already, and
# an output may repeat a value of the other stack.
HARMLESS = ["W3005", "W6001"]


def test_cloudformation_would_take_the_templates(any_target: Synthesized) -> None:
    command = [sys.executable, "-m", "cfnlint", "--format", "json", "--ignore-checks", *HARMLESS]
    command += ["--template", *(str(template.path) for template in any_target.templates)]

    done = subprocess.run(command, capture_output=True, text=True)

    complaints = [
        f"{found['Rule']['Id']} {found['Message']} ({'/'.join(map(str, found['Location']['Path']))})"
        for found in json.loads(done.stdout)
    ]
    assert complaints == []
    assert done.returncode == 0, done.stderr

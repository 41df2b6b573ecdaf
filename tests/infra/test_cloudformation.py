"""The templates against CloudFormation's schemas: AWS refuses properties that emulators ignore."""

import pathlib
import subprocess
import sys

from tests.infra.conftest import Synthesized

CFN_LINT = pathlib.Path(sys.executable).with_name("cfn-lint")
# Two habits of the CDK, without effect: it names dependencies that a reference implies already, and
# an output may repeat a value of the other stack.
HARMLESS = ["W3005", "W6001"]


def test_cloudformation_would_take_the_templates(any_target: Synthesized) -> None:
    command = [str(CFN_LINT), "--ignore-checks", *HARMLESS]
    command += ["--template", *(str(template.path) for template in any_target.templates)]

    done = subprocess.run(command, capture_output=True, text=True)

    assert (done.returncode, done.stdout) == (0, ""), done.stderr

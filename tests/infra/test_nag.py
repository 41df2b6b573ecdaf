"""cdk-nag's AwsSolutions rules over the target `aws`; what we do otherwise has its reason here."""

import json
import pathlib
import re

import pytest
from aws_cdk import Validations
from cdk_nag import AwsSolutionsChecks

from infra import app

ACCEPTED = {
    "AwsSolutions-SMG4": "No rotation by schedule: it needs a function with a way out of the VPC."
    " The functions read a secret again after a refused password, so rotating by hand is safe.",
    "AwsSolutions-RDS11": "Another port than 5432 hides nothing; only the functions reach it.",
    "AwsSolutions-S1": "Results are read by presigned URLs that the platform logs as it mints them;"
    " an access log would be one more bucket that keeps customers' addresses.",
    r"AwsSolutions-IAM5\[Resource::\*\]": "X-Ray's and the network interfaces' actions know no"
    " narrower resource; test_permissions.py lists them.",
    r"AwsSolutions-IAM5\[Resource::.*/results/\*\]": "Results have names that nobody knows before.",
    "AwsSolutions-L1": "python3.13, not the newest: it is what LocalStack's free image runs too.",
    "AwsSolutions-APIG2": "The function validates requests and answers with problem+json.",
    "AwsSolutions-APIG3": "A web ACL costs a monthly sum and is the adopter's choice.",
    "AwsSolutions-APIG4": "API keys at the door, and their owner's isolation in the SQL behind it.",
    "AwsSolutions-APIG6": "Execution logs would hold request bodies; the access log is on.",
    "AwsSolutions-COG4": "Clients are programs with API keys, not people in a user pool.",
    r"AwsSolutions-IAM4\[Policy::.*AmazonAPIGatewayPushToCloudWatchLogs\]": "API Gateway's role"
    " for its access log is one for the account, and this is the policy that AWS names for it.",
}


@pytest.fixture(scope="module")
def findings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    folder = tmp_path_factory.mktemp("nag")
    checked = app.build({"target": "aws"}, outdir=folder)
    Validations.of(checked).add_plugins(AwsSolutionsChecks(checked))
    with pytest.raises(RuntimeError, match="ValidationFailed"):
        checked.synth()
    report = json.loads((pathlib.Path(folder) / "validation-report.json").read_text())
    return {
        violation["ruleName"]: [one["constructPath"] for one in violation["violatingConstructs"]]
        for plugin in report["pluginReports"]
        if plugin["pluginName"] == "AwsSolutions"
        for violation in plugin["violations"]
    }


def test_rules_that_are_broken_have_a_reason(findings: dict[str, list[str]]) -> None:
    unexplained = {
        rule: paths
        for rule, paths in findings.items()
        if not any(re.fullmatch(pattern, rule) for pattern in ACCEPTED)
    }

    assert unexplained == {}


def test_reasons_are_given_for_rules_that_are_broken_only(findings: dict[str, list[str]]) -> None:
    outdated = {
        pattern for pattern in ACCEPTED if not any(re.fullmatch(pattern, rule) for rule in findings)
    }

    assert outdated == set()

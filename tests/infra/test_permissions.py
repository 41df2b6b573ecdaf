"""Each function has exactly the rights that it needs; the emulators do not check that."""

from typing import Any

import pytest

from tests.infra.conftest import Synthesize, Synthesized
from tests.infra.template import actions, as_list

SEND = {"sqs:SendMessage", "sqs:GetQueueAttributes", "sqs:GetQueueUrl"}
CONSUME = {
    "sqs:ReceiveMessage",
    "sqs:ChangeMessageVisibility",
    "sqs:GetQueueUrl",
    "sqs:DeleteMessage",
    "sqs:GetQueueAttributes",
}
LOOK = {"sqs:ReceiveMessage", "sqs:ChangeMessageVisibility", "sqs:GetQueueAttributes"}
CLEAN = {
    "s3:DeleteObject",
    "s3:AbortMultipartUpload",
    "s3:ListMultipartUploadParts",
    "s3:ListBucket",
    "s3:ListBucketMultipartUploads",
}
SECRET = {"secretsmanager:GetSecretValue", "secretsmanager:DescribeSecret"}
EXPECTED = {
    "Api": SEND | SECRET | {"s3:GetObject"},
    "Worker": SEND | CONSUME | SECRET | CLEAN | {"s3:GetObject", "s3:PutObject"},
    "Dispatcher": SEND | LOOK | SECRET | CLEAN,
    "Purge": SECRET | CLEAN,
    "Migrate": SECRET,
    "Admin": SEND | CONSUME | SECRET | CLEAN | {"sqs:PurgeQueue"},
}
EVERYONE = {"logs:CreateLogStream", "logs:PutLogEvents"}
# These actions know no resource that could be named, or none before the function exists.
ON_EVERYTHING = {
    "ec2:AssignPrivateIpAddresses",
    "ec2:CreateNetworkInterface",
    "ec2:DeleteNetworkInterface",
    "ec2:DescribeNetworkInterfaces",
    "ec2:DescribeSubnets",
    "ec2:UnassignPrivateIpAddresses",
    "xray:PutTelemetryRecords",
    "xray:PutTraceSegments",
}


@pytest.mark.parametrize("name", EXPECTED)
def test_function_may_do_what_it_needs_and_nothing_else(aws_target: Synthesized, name: str) -> None:
    allowed = actions(aws_target.service.statements_of(name))

    assert allowed - ON_EVERYTHING == EXPECTED[name] | EVERYONE


@pytest.mark.parametrize("name", EXPECTED)
def test_every_right_names_its_resource(aws_target: Synthesized, name: str) -> None:
    for statement in aws_target.service.statements_of(name):
        assert not any("*" in action for action in as_list(statement["Action"]))
        if "*" in as_list(statement["Resource"]):
            assert set(as_list(statement["Action"])) <= ON_EVERYTHING


@pytest.mark.parametrize("name", ["Api", "Worker", "Dispatcher", "Purge", "Admin"])
def test_objects_outside_of_results_are_out_of_reach(aws_target: Synthesized, name: str) -> None:
    for statement in aws_target.service.statements_of(name):
        if {action for action in as_list(statement["Action"]) if "Object" in action}:
            for resource in as_list(statement["Resource"]):
                assert resource["Fn::Join"][1][-1] == "/results/*"


def test_api_writes_into_the_queue_but_does_not_read_it(aws_target: Synthesized) -> None:
    queue = aws_target.service.id_of("AWS::SQS::Queue", "JobsQueue")

    assert resources_of(aws_target, "Api", "sqs:SendMessage") == [{"Fn::GetAtt": [queue, "Arn"]}]


def test_operator_takes_messages_from_the_dead_letters_only(aws_target: Synthesized) -> None:
    dead = aws_target.service.id_of("AWS::SQS::Queue", "JobsDeadLetters")
    queue = aws_target.service.id_of("AWS::SQS::Queue", "JobsQueue")

    for action in ("sqs:ReceiveMessage", "sqs:DeleteMessage", "sqs:PurgeQueue"):
        assert resources_of(aws_target, "Admin", action) == [{"Fn::GetAtt": [dead, "Arn"]}]
    assert resources_of(aws_target, "Admin", "sqs:SendMessage") == [{"Fn::GetAtt": [queue, "Arn"]}]


def test_only_the_api_reads_the_key_of_cursors(aws_target: Synthesized) -> None:
    readers = {
        name
        for name in EXPECTED
        for resource in resources_of(aws_target, name, "secretsmanager:GetSecretValue")
        if "CursorSecret" in str(resource)
    }

    assert readers == {"Api"}


def test_functions_can_be_started_by_their_triggers_only(any_target: Synthesized) -> None:
    permissions = any_target.service.all("AWS::Lambda::Permission").values()

    assert {permission["Principal"] for permission in permissions} == {
        "apigateway.amazonaws.com",
        "events.amazonaws.com",
    }
    assert len(permissions) == 3
    assert all("SourceArn" in permission for permission in permissions)


def test_a_secret_for_the_data_database_is_read_by_the_worker_only(
    synthesize: Synthesize,
) -> None:
    arn = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:data-AbCdEf"
    elsewhere = synthesize(
        "aws", data_database_url="postgresql://data.example/flights", data_database_secret_arn=arn
    )
    readers = {
        name
        for name in EXPECTED
        if arn in resources_of(elsewhere, name, "secretsmanager:GetSecretValue")
    }

    assert readers == {"Worker"}
    worker = elsewhere.service.one("AWS::Lambda::Function", "Worker")
    assert worker["Environment"]["Variables"]["DATA_DATABASE_SECRET_ARN"] == arn


def resources_of(synthesized: Synthesized, function: str, action: str) -> list[Any]:
    return [
        resource
        for statement in synthesized.service.statements_of(function)
        if action in as_list(statement["Action"])
        for resource in as_list(statement["Resource"])
    ]

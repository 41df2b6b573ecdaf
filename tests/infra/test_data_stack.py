"""The stateful stack: nobody but us reads results, and nothing of value goes by accident."""

import json
from datetime import timedelta

import pytest

from jobplatform.settings import ResultSettings
from tests.infra.conftest import Synthesize, Synthesized
from tests.infra.template import as_list


def test_results_bucket_is_closed_to_the_public(any_target: Synthesized) -> None:
    bucket = any_target.data.one("AWS::S3::Bucket")

    assert bucket["PublicAccessBlockConfiguration"] == {
        "BlockPublicAcls": True,
        "BlockPublicPolicy": True,
        "IgnorePublicAcls": True,
        "RestrictPublicBuckets": True,
    }
    assert bucket["OwnershipControls"]["Rules"] == [{"ObjectOwnership": "BucketOwnerEnforced"}]


def test_results_are_encrypted_at_rest(any_target: Synthesized) -> None:
    rules = any_target.data.one("AWS::S3::Bucket")["BucketEncryption"][
        "ServerSideEncryptionConfiguration"
    ]

    assert [rule["ServerSideEncryptionByDefault"]["SSEAlgorithm"] for rule in rules] == ["AES256"]


def test_bucket_policy_only_denies_and_it_denies_what_is_not_tls(any_target: Synthesized) -> None:
    """The emulators hand private objects to unsigned requests; on AWS nothing allows them."""
    statements = any_target.data.one("AWS::S3::BucketPolicy")["PolicyDocument"]["Statement"]

    assert {statement["Effect"] for statement in statements} == {"Deny"}
    assert {"Bool": {"aws:SecureTransport": "false"}} in [
        statement["Condition"] for statement in statements
    ]
    for statement in statements:
        assert as_list(statement["Action"]) == ["s3:*"]
        assert statement["Principal"] == {"AWS": "*"}


def test_versions_are_off_so_that_a_deleted_result_is_gone(any_target: Synthesized) -> None:
    assert "VersioningConfiguration" not in any_target.data.one("AWS::S3::Bucket")


def test_lifecycle_rules_stand_behind_the_purge(any_target: Synthesized) -> None:
    rules = {
        rule["Id"]: rule
        for rule in any_target.data.one("AWS::S3::Bucket")["LifecycleConfiguration"]["Rules"]
    }
    lifetime = ResultSettings(bucket="any").ttl + ResultSettings(bucket="any").purge_grace

    assert rules["abandoned-uploads"]["AbortIncompleteMultipartUpload"] == {
        "DaysAfterInitiation": 2
    }
    assert rules["forgotten-results"]["Prefix"] == "results/"
    expiration = timedelta(days=rules["forgotten-results"]["ExpirationInDays"])
    assert lifetime < expiration <= lifetime + timedelta(days=2)
    assert {rule["Status"] for rule in rules.values()} == {"Enabled"}


def test_results_that_live_longer_are_not_deleted_by_the_lifecycle_rule(
    synthesize: Synthesize,
) -> None:
    longer = synthesize("embedded", settings={"RESULTS_TTL": "P30D"})
    rules = longer.data.one("AWS::S3::Bucket")["LifecycleConfiguration"]["Rules"]

    assert [rule["ExpirationInDays"] for rule in rules if "Prefix" in rule] == [32]


@pytest.mark.parametrize(
    ("resource_type", "policy"),
    [
        ("AWS::S3::Bucket", "Retain"),
        ("AWS::SecretsManager::Secret", "Retain"),
        ("AWS::RDS::DBInstance", "Snapshot"),
    ],
)
def test_deleting_the_stack_keeps_the_data_on_aws(
    aws_target: Synthesized, resource_type: str, policy: str
) -> None:
    for name in aws_target.data.all(resource_type):
        resource = aws_target.data.resource(name)
        assert resource["DeletionPolicy"] == resource["UpdateReplacePolicy"] == policy


def test_stack_of_data_cannot_be_deleted_in_passing_on_aws(aws_target: Synthesized) -> None:
    manifest = json.loads((aws_target.folder / "manifest.json").read_text())

    assert manifest["artifacts"]["JobPlatformData"]["properties"]["terminationProtection"] is True


def test_emulators_have_no_network_and_no_database_of_their_own(synthesize: Synthesize) -> None:
    for name in ("embedded", "localstack"):
        types = {
            resource["Type"]
            for template in synthesize(name).templates
            for resource in template.document["Resources"].values()
        }
        assert not {kind for kind in types if kind.startswith(("AWS::EC2::", "AWS::RDS::"))}


def test_database_is_private_encrypted_backed_up_and_protected(aws_target: Synthesized) -> None:
    database = aws_target.data.one("AWS::RDS::DBInstance")

    assert database["Engine"] == "postgres"
    assert database["StorageEncrypted"] is True
    assert database["PubliclyAccessible"] is False
    assert database["DeletionProtection"] is True
    assert database["MultiAZ"] is True
    assert database["BackupRetentionPeriod"] >= 7
    assert database["MaxAllocatedStorage"] > int(database["AllocatedStorage"])


def test_database_refuses_connections_without_tls(aws_target: Synthesized) -> None:
    group = aws_target.data.one("AWS::RDS::DBParameterGroup")

    assert group["Parameters"]["rds.force_ssl"] == "1"
    assert int(group["Parameters"]["idle_in_transaction_session_timeout"]) > 0


def test_database_password_is_generated_and_in_no_template(aws_target: Synthesized) -> None:
    database = aws_target.data.one("AWS::RDS::DBInstance")
    secret = aws_target.data.one("AWS::SecretsManager::Secret", "DatabaseSecret")

    assert secret["GenerateSecretString"]["GenerateStringKey"] == "password"
    password = "".join(map(str, database["MasterUserPassword"]["Fn::Join"][1]))
    assert "resolve:secretsmanager:" in password


def test_network_has_no_way_out_but_endpoints(aws_target: Synthesized) -> None:
    data = aws_target.data
    for forbidden in ("AWS::EC2::NatGateway", "AWS::EC2::InternetGateway", "AWS::EC2::Route"):
        assert not data.all(forbidden)

    services = {
        str(endpoint["ServiceName"]["Fn::Join"][1][-1]): endpoint["VpcEndpointType"]
        for endpoint in data.all("AWS::EC2::VPCEndpoint").values()
    }
    assert services == {".s3": "Gateway", ".sqs": "Interface", ".secretsmanager": "Interface"}


def test_only_the_functions_reach_the_database(aws_target: Synthesized) -> None:
    data = aws_target.data
    functions = data.id_of("AWS::EC2::SecurityGroup", "NetworkFunctions")
    database = data.id_of("AWS::EC2::SecurityGroup", "DatabaseInstanceSecurityGroup")
    into_database = [
        rule
        for rule in data.all("AWS::EC2::SecurityGroupIngress").values()
        if rule["GroupId"]["Fn::GetAtt"][0] == database
    ]

    assert "SecurityGroupIngress" not in data.resource(database)["Properties"]
    assert [rule["SourceSecurityGroupId"]["Fn::GetAtt"][0] for rule in into_database] == [functions]
    assert "SecurityGroupIngress" not in data.resource(functions)["Properties"]


def test_functions_may_talk_to_endpoints_and_the_database_only(aws_target: Synthesized) -> None:
    data = aws_target.data
    functions = data.id_of("AWS::EC2::SecurityGroup", "NetworkFunctions")
    inline = data.resource(functions)["Properties"]["SecurityGroupEgress"]
    separate = [
        rule
        for rule in data.all("AWS::EC2::SecurityGroupEgress").values()
        if rule["GroupId"]["Fn::GetAtt"][0] == functions
    ]

    assert {(rule["FromPort"], rule["ToPort"]) for rule in inline} == {(443, 443)}
    assert all("DestinationSecurityGroupId" in rule for rule in separate)


def test_a_data_database_elsewhere_gets_its_port_opened(synthesize: Synthesize) -> None:
    elsewhere = synthesize("aws", data_database_url="postgresql://data.example:6432/flights")
    functions = elsewhere.data.one("AWS::EC2::SecurityGroup", "NetworkFunctions")

    ports = {rule["FromPort"] for rule in functions["SecurityGroupEgress"]}
    assert ports == {443, 6432}

"""The stateless stack: queue, functions, schedules, migration and alarms."""

import json
from typing import Any

import pytest

from infra.bundling import ROOT, content_hash
from jobplatform import settings
from tests.infra.conftest import Synthesize, Synthesized
from tests.infra.template import strings

FUNCTIONS = {
    "Api": ("api", 29, 1024),
    "Worker": ("worker", 900, 2048),
    "Dispatcher": ("dispatcher", 60, 512),
    "Purge": ("purge", 900, 512),
    "Migrate": ("migrate", 900, 512),
    "Admin": ("admin", 60, 512),
}
GROUPS: dict[str, list[type[settings.Settings]]] = {
    "Api": [
        settings.DatabaseSettings,
        settings.QueueSettings,
        settings.ResultSettings,
        settings.JobSettings,
        settings.ApiSettings,
    ],
    "Worker": [
        settings.DatabaseSettings,
        settings.DataDatabaseSettings,
        settings.QueueSettings,
        settings.ResultSettings,
        settings.JobSettings,
        settings.WorkerSettings,
    ],
    "Dispatcher": [
        settings.DatabaseSettings,
        settings.QueueSettings,
        settings.ResultSettings,
        settings.JobSettings,
    ],
    "Purge": [settings.DatabaseSettings, settings.ResultSettings, settings.JobSettings],
    "Migrate": [settings.DatabaseSettings],
    "Admin": [
        settings.DatabaseSettings,
        settings.QueueSettings,
        settings.ResultSettings,
        settings.JobSettings,
    ],
}


def function(synthesized: Synthesized, name: str) -> dict[str, Any]:
    return synthesized.service.one("AWS::Lambda::Function", name)


def environment(synthesized: Synthesized, name: str) -> dict[str, Any]:
    variables: dict[str, Any] = function(synthesized, name)["Environment"]["Variables"]
    return variables


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_has_its_handler_time_and_memory(any_target: Synthesized, name: str) -> None:
    folder, timeout, memory = FUNCTIONS[name]
    made = function(any_target, name)

    assert made["Handler"] == f"functions.{folder}.handler.lambda_handler"
    assert (made["Timeout"], made["MemorySize"]) == (timeout, memory)
    assert made["Runtime"] == any_target.target.runtime
    assert made["Architectures"] == [any_target.target.architecture]
    assert set(made["LoggingConfig"]) == {"LogGroup"}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_can_read_its_settings_from_its_environment(
    any_target: Synthesized, name: str
) -> None:
    # References are not resolved before the deployment; any text stands for them.
    variables = {
        key: value if isinstance(value, str) else "reference"
        for key, value in environment(any_target, name).items()
    }

    for group in GROUPS[name]:
        group.from_env(variables)
    known = {group.variable(field) for group in GROUPS[name] for field in group.model_fields}
    ours = {key for key in variables if not key.startswith("POWERTOOLS_")}
    assert ours - settings.WORKER_ALLOCATOR.keys() <= known


def test_only_the_worker_has_the_allocator_of_large_buffers(any_target: Synthesized) -> None:
    for name in FUNCTIONS:
        shared = environment(any_target, name).items() & settings.WORKER_ALLOCATOR.items()
        assert len(shared) == (2 if name == "Worker" else 0)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_logs_have_an_end(any_target: Synthesized, name: str) -> None:
    group = function(any_target, name)["LoggingConfig"]["LogGroup"]["Ref"]

    assert any_target.service.resource(group)["Properties"]["RetentionInDays"] >= 1


def test_tracing_and_its_switch_agree(any_target: Synthesized) -> None:
    for name in FUNCTIONS:
        traced = function(any_target, name).get("TracingConfig") == {"Mode": "Active"}
        disabled = environment(any_target, name)["POWERTOOLS_TRACE_DISABLED"]
        assert traced is any_target.target.tracing is (disabled == "false")


def test_layers_are_mounted_or_merged_as_the_target_says(any_target: Synthesized) -> None:
    layers = any_target.service.all("AWS::Lambda::LayerVersion")

    assert len(layers) == (0 if any_target.target.merge_layers else 3)
    for name in FUNCTIONS:
        assert len(function(any_target, name).get("Layers", [])) == len(layers)


def test_functions_run_in_the_isolated_subnets_on_aws(aws_target: Synthesized) -> None:
    for name in FUNCTIONS:
        network = function(aws_target, name)["VpcConfig"]
        assert len(network["SubnetIds"]) == 2
        assert len(network["SecurityGroupIds"]) == 1


def test_database_certificate_is_verified_on_aws(aws_target: Synthesized) -> None:
    for name in FUNCTIONS:
        variables = environment(aws_target, name)
        url = "".join(strings(variables["DATABASE_URL"]))
        assert url.endswith("/jobplatform?sslmode=verify-full")
        assert "@" not in url
        assert "DATABASE_SECRET_ARN" in variables


def test_no_secret_is_in_an_environment_on_aws(aws_target: Synthesized) -> None:
    for name in FUNCTIONS:
        assert "API_CURSOR_SECRET" not in environment(aws_target, name)
    secret = aws_target.data.one("AWS::SecretsManager::Secret", "CursorSecret")
    assert secret["GenerateSecretString"]["PasswordLength"] == 64


def test_messages_stay_invisible_for_six_times_the_workers_timeout(
    any_target: Synthesized,
) -> None:
    queue = any_target.service.one("AWS::SQS::Queue", "JobsQueue")

    assert queue["VisibilityTimeout"] >= 6 * function(any_target, "Worker")["Timeout"]
    assert queue["VisibilityTimeout"] <= 12 * 3600


def test_a_message_that_fails_ends_in_the_dead_letter_queue(any_target: Synthesized) -> None:
    service = any_target.service
    redrive = service.one("AWS::SQS::Queue", "JobsQueue")["RedrivePolicy"]
    dead_letters = service.id_of("AWS::SQS::Queue", "JobsDeadLetters")

    assert redrive["maxReceiveCount"] == 5
    assert redrive["deadLetterTargetArn"] == {"Fn::GetAtt": [dead_letters, "Arn"]}
    assert service.one("AWS::SQS::Queue", "JobsDeadLetters")["MessageRetentionPeriod"] == 1_209_600


def test_queues_are_encrypted_and_refuse_what_is_not_tls(any_target: Synthesized) -> None:
    service = any_target.service
    policies = service.all("AWS::SQS::QueuePolicy").values()

    assert all(queue["SqsManagedSseEnabled"] for queue in service.all("AWS::SQS::Queue").values())
    assert len(policies) == len(service.all("AWS::SQS::Queue"))
    for policy in policies:
        for statement in policy["PolicyDocument"]["Statement"]:
            assert statement["Effect"] == "Deny"
            assert statement["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}


def test_worker_gets_one_doorbell_at_a_time_and_reports_failures_by_item(
    any_target: Synthesized,
) -> None:
    mapping = any_target.service.one("AWS::Lambda::EventSourceMapping")

    assert mapping["BatchSize"] == 1
    assert mapping["FunctionResponseTypes"] == ["ReportBatchItemFailures"]
    assert mapping["ScalingConfig"] == {"MaximumConcurrency": any_target.target.worker_concurrency}


def test_dispatcher_runs_every_minute_and_purge_every_night(any_target: Synthesized) -> None:
    service = any_target.service
    schedules = {
        rule["Targets"][0]["Arn"]["Fn::GetAtt"][0]: rule
        for rule in service.all("AWS::Events::Rule").values()
    }
    dispatcher = schedules[service.id_of("AWS::Lambda::Function", "Dispatcher")]
    purge = schedules[service.id_of("AWS::Lambda::Function", "Purge")]

    assert dispatcher["ScheduleExpression"] == "rate(1 minute)"
    assert purge["ScheduleExpression"] == "cron(0 3 * * ? *)"
    assert {rule["State"] for rule in schedules.values()} == {"ENABLED"}


def test_new_code_waits_for_the_migration(any_target: Synthesized) -> None:
    service = any_target.service
    migration = service.id_of("Custom::DatabaseSchema")

    for name in FUNCTIONS.keys() - {"Migrate"}:
        made = service.resource(service.id_of("AWS::Lambda::Function", name))
        assert migration in made["DependsOn"]
    assert service.one("Custom::DatabaseSchema")["ServiceToken"] == {
        "Fn::GetAtt": [service.id_of("AWS::Lambda::Function", "Migrate"), "Arn"]
    }


def test_migration_runs_again_when_the_migrations_change(any_target: Synthesized) -> None:
    folder = ROOT / "layers" / "core" / "python" / "jobplatform" / "migrations"
    migration = any_target.service.one("Custom::DatabaseSchema")

    assert migration["version"] == content_hash(folder)
    assert int(migration["ServiceTimeout"]) > function(any_target, "Migrate")["Timeout"]


def test_a_failing_migration_is_not_tried_again_behind_the_deployments_back(
    any_target: Synthesized,
) -> None:
    config = any_target.service.one("AWS::Lambda::EventInvokeConfig", "Migrate")

    assert config["MaximumRetryAttempts"] == 0


def test_alarms_watch_what_nobody_looks_at(aws_target: Synthesized) -> None:
    alarms = aws_target.service.all("AWS::CloudWatch::Alarm")
    metrics = {(alarm["Namespace"], alarm["MetricName"]) for alarm in alarms.values()}

    assert metrics == {
        ("AWS/SQS", "ApproximateNumberOfMessagesVisible"),
        ("AWS/SQS", "ApproximateAgeOfOldestMessage"),
        ("AWS/Lambda", "Errors"),
        ("AWS/Lambda", "Throttles"),
        ("AWS/Lambda", "Invocations"),
        ("AWS/ApiGateway", "5XXError"),
        ("AWS/RDS", "FreeStorageSpace"),
        ("JobPlatform", "SnapshotAge"),
    }
    assert all(alarm["AlarmActions"] and alarm["AlarmDescription"] for alarm in alarms.values())


def test_a_dispatcher_that_does_not_run_at_all_raises_the_alarm(aws_target: Synthesized) -> None:
    alarm = aws_target.service.one("AWS::CloudWatch::Alarm", "AlarmsDispatcherSilent")

    assert alarm["TreatMissingData"] == "breaching"
    assert alarm["ComparisonOperator"] == "LessThanThreshold"


def test_alarms_reach_the_address_that_was_given(synthesize: Synthesize) -> None:
    told = synthesize("aws", alarm_email="operator@example.com")

    subscription = told.service.one("AWS::SNS::Subscription")
    assert (subscription["Protocol"], subscription["Endpoint"]) == ("email", "operator@example.com")


def test_outputs_name_what_operators_and_tools_need(any_target: Synthesized) -> None:
    assert any_target.service.outputs == {
        "ApiUrl",
        "ApiId",
        "AdminFunctionName",
        "ApiFunctionName",
        "WorkerFunctionName",
        "DispatcherFunctionName",
        "PurgeFunctionName",
        "QueueUrl",
        "DeadLetterQueueUrl",
        "ResultsBucketName",
        "UsagePlanBasicId",
        "UsagePlanProId",
    }


def test_further_settings_reach_the_functions_that_read_them(synthesize: Synthesize) -> None:
    changed = synthesize("embedded", settings={"JOBS_LEASE": "PT5S", "WORKER_DRAIN_FOR": "PT1S"})

    assert environment(changed, "Worker")["JOBS_LEASE"] == "PT5S"
    assert environment(changed, "Worker")["WORKER_DRAIN_FOR"] == "PT1S"
    assert environment(changed, "Dispatcher")["JOBS_LEASE"] == "PT5S"
    assert "WORKER_DRAIN_FOR" not in environment(changed, "Dispatcher")
    assert "JOBS_LEASE" not in environment(changed, "Migrate")


def test_another_prefix_makes_another_installation(synthesize: Synthesize) -> None:
    other = synthesize("embedded", prefix="Staging")

    manifest = json.loads((other.folder / "manifest.json").read_text())
    stacks = {
        name
        for name, artifact in manifest["artifacts"].items()
        if artifact["type"] == "aws:cloudformation:stack"
    }
    assert stacks == {"StagingData", "StagingService"}


def test_databases_elsewhere_are_what_the_context_says(synthesize: Synthesize) -> None:
    elsewhere = synthesize(
        "embedded",
        database_url="postgresql://jobs@127.0.0.1:6000/platform",
        data_database_url="postgresql://jobs@127.0.0.1:6000/flights",
    )

    worker = environment(elsewhere, "Worker")
    assert worker["DATABASE_URL"] == "postgresql://jobs@127.0.0.1:6000/platform"
    assert worker["DATA_DATABASE_URL"] == "postgresql://jobs@127.0.0.1:6000/flights"
    assert "DATA_DATABASE_URL" not in environment(elsewhere, "Api")

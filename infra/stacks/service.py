"""What can be made anew: queue, functions, API, schedules and alarms."""

import functools
from datetime import timedelta

from aws_cdk import Annotations, CfnOutput, Duration, Stack
from aws_cdk import aws_cloudwatch as cloudwatch
from aws_cdk import aws_events as events
from aws_cdk import aws_events_targets as targets
from aws_cdk import aws_secretsmanager as secretsmanager
from constructs import Construct

from infra.bundling import CA_BUNDLE, Bundle
from infra.constructs.alarms import Alarms
from infra.constructs.job_queue import JobQueue
from infra.constructs.migration import Migration
from infra.constructs.platform_function import METRICS_NAMESPACE, FunctionLayers, PlatformFunction
from infra.constructs.rest_api import RestApi
from infra.environment import Environment
from infra.options import Options
from infra.stacks.data import DataStack
from infra.targets import Target
from jobplatform.plans import PLANS
from jobplatform.settings import (
    WORKER_ALLOCATOR,
    ApiSettings,
    DatabaseSettings,
    DataDatabaseSettings,
    FaultSettings,
    JobSettings,
    QueueSettings,
    ResultSettings,
    WorkerSettings,
)

_MIGRATION_TIMEOUT = timedelta(minutes=15)


class ServiceStack(Stack):
    """Everything here follows from the code; deleting it loses no job and no result."""

    def __init__(
        self,
        scope: Construct,
        id: str,
        *,
        target: Target,
        options: Options,
        data: DataStack,
        bundle: Bundle,
        version: str,
    ) -> None:
        super().__init__(scope, id, description="Async Job Platform: what can be made anew")
        alarms = Alarms(self, "Alarms", target=target, email=options.alarm_email)
        queue = JobQueue(
            self, "Jobs", consumer_timeout=target.worker_timeout, max_deliveries=5, alarms=alarms
        )
        environment = Environment.of_values(
            {
                DatabaseSettings: _database(target, options, data, bundle),
                DataDatabaseSettings: _data_database(options, bundle),
                QueueSettings: {
                    "url": queue.queue.queue_url,
                    "dead_letter_url": queue.dead_letter_queue.queue_url,
                },
                ResultSettings: {
                    "bucket": data.results.bucket.bucket_name,
                    "public_endpoint_url": target.public_s3_endpoint,
                },
                ApiSettings: {
                    "cursor_secret_arn": data.cursor_secret.secret_arn,
                    "version": version,
                    "target": target.name,
                },
            },
            overrides=options.settings,
        )
        job_groups = (
            DatabaseSettings,
            QueueSettings,
            ResultSettings,
            JobSettings,
            FaultSettings,
        )
        function = functools.partial(
            PlatformFunction,
            self,
            bundle=bundle,
            layers=FunctionLayers(self, "Layers", bundle=bundle, target=target),
            network=data.network,
            alarms=alarms,
            target=target,
        )

        migrate = function(
            "Migrate",
            name="migrate",
            timeout=_MIGRATION_TIMEOUT,
            memory_mb=512,
            environment=environment.of(DatabaseSettings),
            retries=0,
        )
        migration = Migration(
            self,
            "Migration",
            function=migrate,
            timeout=_MIGRATION_TIMEOUT,
            version=bundle.migrations_hash,
        )

        api = function(
            "Api",
            name="api",
            timeout=timedelta(seconds=29),
            memory_mb=1024,
            environment=environment.of(*job_groups, ApiSettings),
            concurrency=target.api_concurrency,
        )
        data.cursor_secret.grant_read(api)
        data.results.grant_download(api)
        queue.queue.grant_send_messages(api)

        worker_environment = environment.of(*job_groups, DataDatabaseSettings, WorkerSettings)
        worker = function(
            "Worker",
            name="worker",
            timeout=target.worker_timeout,
            memory_mb=WorkerSettings.from_env(worker_environment).memory_mb,
            environment={**worker_environment, **WORKER_ALLOCATOR},
        )
        data.results.grant_write(worker)
        queue.queue.grant_send_messages(worker)
        queue.deliver_to(
            worker,
            timeout=target.worker_timeout,
            max_concurrency=target.worker_concurrency,
            batch_size=1,
        )

        alarms.watch(
            "SnapshotAge",
            cloudwatch.Metric(
                namespace=METRICS_NAMESPACE,
                metric_name="SnapshotAge",
                dimensions_map={"service": "worker"},
                statistic="Maximum",
            ),
            at_least=timedelta(hours=1).total_seconds(),
            minutes=15,
            meaning="An export keeps its snapshot for over an hour; the database cannot clean up.",
        )

        dispatcher = function(
            "Dispatcher",
            name="dispatcher",
            timeout=timedelta(seconds=60),
            memory_mb=512,
            environment=environment.of(*job_groups),
            retries=0,
        )
        data.results.grant_clean(dispatcher)
        queue.queue.grant_send_messages(dispatcher)
        # It looks at the dead letters and leaves them there.
        queue.dead_letter_queue.grant(
            dispatcher,
            "sqs:ReceiveMessage",
            "sqs:ChangeMessageVisibility",
            "sqs:GetQueueAttributes",
        )
        # A run that was missed is made up for by the next one.
        self._schedule(
            dispatcher, events.Schedule.rate(Duration.minutes(1)), Duration.minutes(1), 0
        )
        alarms.watch(
            "DispatcherSilent",
            dispatcher.metric_invocations(statistic="Sum"),
            below=1,
            no_data_is_bad=True,
            meaning="The dispatcher has not run for 5 minutes: retries and lost doorbells wait.",
        )

        purge = function(
            "Purge",
            name="purge",
            timeout=timedelta(minutes=15),
            memory_mb=512,
            environment=environment.of(
                DatabaseSettings, ResultSettings, JobSettings, FaultSettings
            ),
        )
        data.results.grant_clean(purge)
        self._schedule(purge, events.Schedule.cron(hour="3", minute="0"), Duration.hours(1), 2)

        admin = function(
            "Admin",
            name="admin",
            timeout=timedelta(seconds=60),
            memory_mb=512,
            environment=environment.of(*job_groups),
        )
        data.results.grant_clean(admin)
        queue.queue.grant_send_messages(admin)
        queue.dead_letter_queue.grant_consume_messages(admin)
        queue.dead_letter_queue.grant_purge(admin)

        functions = {
            "Api": api,
            "Worker": worker,
            "Dispatcher": dispatcher,
            "Purge": purge,
            "Admin": admin,
        }
        for code_on_the_new_schema in functions.values():
            code_on_the_new_schema.node.add_dependency(migration)
        if data.database is not None:
            for reader in (migrate, *functions.values()):
                data.database.secret.grant_read(reader)
            alarms.watch(
                "DatabaseStorage",
                data.database.instance.metric_free_storage_space(statistic="Minimum"),
                below=5 * 2**30,
                meaning="The database has less than 5 GiB left and has reached its largest size.",
            )
        if options.data_database_secret_arn is not None:
            secretsmanager.Secret.from_secret_complete_arn(
                self, "DataDatabaseSecret", options.data_database_secret_arn
            ).grant_read(worker)

        rest_api = RestApi(
            self, "Rest", name=self.stack_name, function=api, plans=PLANS.values(), target=target
        )
        alarms.watch(
            "RestServerErrors",
            rest_api.api.metric_server_error(statistic="Sum"),
            at_least=5,
            meaning="The API answered five requests or more with a 5xx within 5 minutes.",
        )

        outputs = {
            "ApiUrl": rest_api.api.url,
            "ApiId": rest_api.api.rest_api_id,
            "QueueUrl": queue.queue.queue_url,
            "DeadLetterQueueUrl": queue.dead_letter_queue.queue_url,
            "ResultsBucketName": data.results.bucket.bucket_name,
        }
        for name, one in functions.items():
            outputs[f"{name}FunctionName"] = one.function_name
        for plan, usage_plan in rest_api.usage_plans.items():
            outputs[f"UsagePlan{plan.capitalize()}Id"] = usage_plan.usage_plan_id
        for output, value in outputs.items():
            CfnOutput(self, output, value=value)
        self._warn_of_what_is_missing(target, bundle)

    def _schedule(
        self,
        function: PlatformFunction,
        schedule: events.Schedule,
        max_event_age: Duration,
        retries: int,
    ) -> None:
        events.Rule(
            self,
            f"{function.node.id}Schedule",
            schedule=schedule,
            targets=[
                targets.LambdaFunction(
                    function, retry_attempts=retries, max_event_age=max_event_age
                )
            ],
        )

    def _warn_of_what_is_missing(self, target: Target, bundle: Bundle) -> None:
        if target.database is not None and bundle.ca_file is None:
            Annotations.of(self).add_warning_v2(
                "jobplatform:rds-ca",
                f"layers/dependencies/{CA_BUNDLE} is missing: the functions verify the database's"
                " certificate, and without the certificate authorities of RDS the migration will"
                " fail. docs/howto/deploy-to-aws.md says where to get the file.",
            )


def _database(
    target: Target, options: Options, data: DataStack, bundle: Bundle
) -> dict[str, str | None]:
    if data.database is None:
        return {"url": options.database_url or target.database_url}
    return {
        "url": data.database.url,
        "secret_arn": data.database.secret.secret_arn,
        "ca_file": bundle.ca_file,
    }


def _data_database(options: Options, bundle: Bundle) -> dict[str, str | None]:
    if options.data_database_url is None:
        return {}
    return {
        "url": options.data_database_url,
        "secret_arn": options.data_database_secret_arn,
        "ca_file": bundle.ca_file,
    }

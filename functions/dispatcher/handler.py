"""EventBridge calls it every minute: it rings for every job that is due and that nobody has started."""

import dataclasses
import functools
from typing import Any

import sqlalchemy as sa
from aws_lambda_powertools.metrics import MetricUnit
from aws_lambda_powertools.utilities.typing import LambdaContext

from jobplatform import aws, database, faults, queue, results
from jobplatform.observability import logger, metrics
from jobplatform.settings import (
    DatabaseSettings,
    FaultSettings,
    JobSettings,
    QueueSettings,
    ResultSettings,
)
from jobplatform.usecases import ring_due_jobs


@dataclasses.dataclass(frozen=True)
class _Resources:
    engine: sa.Engine
    queue: queue.Queue
    bucket: results.Bucket
    settings: JobSettings


@functools.cache
def _resources() -> _Resources:
    faults.switch_on(FaultSettings.from_env(), function="dispatcher")
    return _Resources(
        engine=database.create_engine(
            DatabaseSettings.from_env(), application_name="jobplatform-dispatcher"
        ),
        queue=queue.Queue(aws.client("sqs"), QueueSettings.from_env().url),
        bucket=aws.bucket(ResultSettings.from_env()),
        settings=JobSettings.from_env(),
    )


@logger.inject_lambda_context
@metrics.log_metrics
def lambda_handler(event: dict[str, Any], context: LambdaContext) -> dict[str, int]:
    got = _resources()
    tick = ring_due_jobs.ring_due_jobs(
        engine=got.engine, queue=got.queue, bucket=got.bucket, settings=got.settings
    )
    for name, value in dataclasses.asdict(tick).items():
        metrics.add_metric(name=f"Jobs{name.capitalize()}", unit=MetricUnit.Count, value=value)
    return dataclasses.asdict(tick)

"""EventBridge calls it every minute: it rings for jobs that are due and not started."""

import dataclasses
import functools
from typing import Any

import sqlalchemy as sa
from aws_lambda_powertools.metrics import MetricUnit
from aws_lambda_powertools.utilities.typing import LambdaContext

from jobplatform import aws, database, faults, results
from jobplatform.observability import logger, metrics
from jobplatform.queue import DeadLetters, Queue
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
    queue: Queue
    dead_letters: DeadLetters | None
    bucket: results.Bucket
    settings: JobSettings


@functools.cache
def _resources() -> _Resources:
    faults.switch_on(FaultSettings.from_env(), function="dispatcher")
    queues, sqs = QueueSettings.from_env(), aws.client("sqs")
    dead = queues.dead_letter_url
    return _Resources(
        engine=database.create_engine(
            DatabaseSettings.from_env(), application_name="jobplatform-dispatcher"
        ),
        queue=Queue(sqs, queues.url),
        dead_letters=DeadLetters(sqs, dead) if dead else None,
        bucket=aws.bucket(ResultSettings.from_env()),
        settings=JobSettings.from_env(),
    )


@logger.inject_lambda_context
@metrics.log_metrics
def lambda_handler(event: dict[str, Any], context: LambdaContext) -> dict[str, int]:
    got = _resources()
    tick = ring_due_jobs.ring_due_jobs(
        engine=got.engine,
        queue=got.queue,
        dead_letters=got.dead_letters,
        bucket=got.bucket,
        settings=got.settings,
    )
    for name, value in dataclasses.asdict(tick).items():
        metric = f"Jobs{name.title().replace('_', '')}"
        metrics.add_metric(name=metric, unit=MetricUnit.Count, value=value)
    return dataclasses.asdict(tick)

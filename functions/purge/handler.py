"""EventBridge calls it daily: what is past its time goes, for good."""

import dataclasses
import datetime as dt
import functools
from typing import Any

import sqlalchemy as sa
from aws_lambda_powertools.metrics import MetricUnit
from aws_lambda_powertools.utilities.typing import LambdaContext

from jobplatform import aws, database, faults, results
from jobplatform.observability import logger, metrics
from jobplatform.settings import DatabaseSettings, FaultSettings, JobSettings, ResultSettings
from jobplatform.usecases.purge import purge


@functools.cache
def _resources() -> tuple[sa.Engine, results.Bucket, JobSettings, ResultSettings]:
    faults.switch_on(FaultSettings.from_env(), function="purge")
    settings = ResultSettings.from_env()
    engine = database.create_engine(
        DatabaseSettings.from_env(), application_name="jobplatform-purge", statement_timeout=60
    )
    return engine, aws.bucket(settings), JobSettings.from_env(), settings


@logger.inject_lambda_context
@metrics.log_metrics
def lambda_handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    engine, bucket, settings, result_settings = _resources()
    purged = purge(
        engine=engine,
        bucket=bucket,
        settings=settings,
        result_settings=result_settings,
        now=dt.datetime.now(dt.UTC),
        seconds_left=lambda: context.get_remaining_time_in_millis() / 1000,
    )
    done = dataclasses.asdict(purged)
    for name in ("jobs", "results"):
        metrics.add_metric(
            name=f"{name.capitalize()}Purged", unit=MetricUnit.Count, value=done[name]
        )
    return done

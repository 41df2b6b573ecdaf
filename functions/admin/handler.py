"""Operators call it through `jobctl admin`, with their own AWS credentials; clients cannot."""

import dataclasses
import datetime as dt
import functools
import json
from typing import Any

from aws_lambda_powertools.utilities.typing import LambdaContext

from jobplatform import aws, database, errors, faults, queue
from jobplatform.observability import logger
from jobplatform.settings import (
    DatabaseSettings,
    FaultSettings,
    JobSettings,
    QueueSettings,
    ResultSettings,
)
from jobplatform.usecases import operate


@functools.cache
def _operator() -> operate.Operator:
    faults.switch_on(FaultSettings.from_env(), function="admin")
    queues, results = QueueSettings.from_env(), ResultSettings.from_env()
    if queues.dead_letter_url is None:
        raise ValueError(f"set {QueueSettings.variable('dead_letter_url')}")
    return operate.Operator(
        engine=database.create_engine(
            DatabaseSettings.from_env(), application_name="jobplatform-admin"
        ),
        queue=queue.Queue(aws.client("sqs"), queues.url),
        dead_letters=queue.DeadLetters(aws.client("sqs"), queues.dead_letter_url),
        bucket=aws.bucket(results),
        jobs=JobSettings.from_env(),
        results=results,
        seconds_left=lambda: 0.0,
    )


@logger.inject_lambda_context
def lambda_handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    operator = dataclasses.replace(
        _operator(), seconds_left=lambda: context.get_remaining_time_in_millis() / 1000
    )
    command, arguments = event.get("command", ""), event.get("arguments") or {}
    try:
        if not isinstance(arguments, dict):
            raise errors.OperatorError("arguments has to be an object.")
        result = operate.run(operator, command, arguments)
    except errors.PlatformError as error:
        return {"error": {"code": error.code, "message": error.message}}
    logger.info("operator's command", command=command)
    answer: dict[str, Any] = json.loads(json.dumps({"result": result}, default=_plain))
    return answer


def _plain(value: Any) -> str:
    return value.isoformat() if isinstance(value, dt.datetime) else str(value)

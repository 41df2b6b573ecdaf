"""Operators call it through `jobs admin`, with their own AWS credentials; clients cannot reach it."""

import datetime as dt
import functools
import json
from typing import Any

from aws_lambda_powertools.utilities.typing import LambdaContext

from jobplatform import database, errors, faults
from jobplatform.observability import logger
from jobplatform.settings import DatabaseSettings, FaultSettings
from jobplatform.usecases import operate


@functools.cache
def _operator() -> operate.Operator:
    faults.switch_on(FaultSettings.from_env(), function="admin")
    return operate.Operator(
        engine=database.create_engine(
            DatabaseSettings.from_env(), application_name="jobplatform-admin"
        )
    )


@logger.inject_lambda_context
def lambda_handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    try:
        result = operate.run(_operator(), event.get("command", ""), event.get("arguments") or {})
    except errors.PlatformError as error:
        return {"error": {"code": error.code, "message": error.message}}
    logger.info("operator's command", command=event.get("command"))
    answer: dict[str, Any] = json.loads(json.dumps({"result": result}, default=_plain))
    return answer


def _plain(value: Any) -> str:
    return value.isoformat() if isinstance(value, dt.datetime) else str(value)

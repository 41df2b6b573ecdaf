"""CloudFormation calls it on every deployment: it brings the schema up before new code takes
traffic.

It answers as a custom resource does, by a PUT to the ResponseURL.
Source: https://docs.aws.amazon.com/AWSCloudFormation/latest/UserGuide/crpg-ref.html
"""

import json
import urllib.request
from typing import Any

from aws_lambda_powertools.utilities.typing import LambdaContext

from jobplatform import database, migrations
from jobplatform.observability import logger
from jobplatform.settings import DatabaseSettings

_PHYSICAL_ID = "jobplatform-schema"
_ANSWER_SECONDS = 10
_MIGRATION_SECONDS = 870  # of the function's 15 minutes


@logger.inject_lambda_context
def lambda_handler(event: dict[str, Any], context: LambdaContext) -> None:
    status, reason = "SUCCESS", ""
    try:
        if event["RequestType"] in ("Create", "Update"):
            _upgrade()
    except Exception as error:
        logger.exception("migration failed")
        status, reason = "FAILED", f"{type(error).__name__}: {error}; see {context.log_stream_name}"
    _answer(event, status, reason)


def _upgrade() -> None:
    engine = database.create_engine(
        DatabaseSettings.from_env(),
        application_name="jobplatform-migrate",
        statement_timeout=_MIGRATION_SECONDS,
    )
    try:
        migrations.upgrade(engine)
    finally:
        engine.dispose()


def _answer(event: dict[str, Any], status: str, reason: str) -> None:
    body = {
        "Status": status,
        "Reason": reason[:1000],
        "PhysicalResourceId": event.get("PhysicalResourceId", _PHYSICAL_ID),
        "StackId": event["StackId"],
        "RequestId": event["RequestId"],
        "LogicalResourceId": event["LogicalResourceId"],
    }
    request = urllib.request.Request(
        event["ResponseURL"],
        data=json.dumps(body).encode(),
        method="PUT",
        headers={"Content-Type": ""},
    )
    with urllib.request.urlopen(request, timeout=_ANSWER_SECONDS):
        pass

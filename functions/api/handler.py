"""The HTTP API: API Gateway (REST) calls it for every request that passed its key and usage plan."""

from typing import Any

from aws_lambda_powertools.event_handler import APIGatewayRestResolver
from aws_lambda_powertools.logging import correlation_paths
from aws_lambda_powertools.utilities.typing import LambdaContext

from functions.api import openapi, routes
from jobplatform import problems
from jobplatform.observability import logger

app = APIGatewayRestResolver(enable_validation=True, serializer=routes.to_json)
problems.install(app)
app.include_router(routes.router)
openapi.install(app)


@logger.inject_lambda_context(correlation_id_path=correlation_paths.API_GATEWAY_REST)
def lambda_handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    return app.resolve(event, context)

"""The HTTP API: API Gateway calls it for every request that passed its key and usage plan."""

from typing import Any

from aws_lambda_powertools.event_handler import APIGatewayRestResolver
from aws_lambda_powertools.logging import correlation_paths
from aws_lambda_powertools.utilities.typing import LambdaContext

from functions.api import openapi, requests, routes
from jobplatform import errors, problems
from jobplatform.observability import logger

app = APIGatewayRestResolver(
    enable_validation=True,
    serializer=routes.to_json,
    json_body_deserializer=requests.parse_json,
)
problems.install(app)
app.include_router(routes.router)
openapi.install(app)


@logger.inject_lambda_context(correlation_id_path=correlation_paths.API_GATEWAY_REST)
def lambda_handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    try:
        request = requests.checked(event)
    except errors.RequestError as error:
        return problems.answer(error, event)
    return app.resolve(request, context)

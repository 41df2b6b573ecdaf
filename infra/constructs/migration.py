"""Brings the database's schema up to date in the middle of a deployment."""

from datetime import timedelta

from aws_cdk import CustomResource, Duration
from constructs import Construct

from infra.constructs.platform_function import PlatformFunction


class Migration(Construct):
    """Runs `migrate` when the migrations changed; what depends on it is deployed afterwards.

    The function answers CloudFormation itself, from inside the VPC by way of S3's gateway endpoint.
    """

    def __init__(
        self,
        scope: Construct,
        id: str,
        *,
        function: PlatformFunction,
        timeout: timedelta,
        version: str,
    ) -> None:
        super().__init__(scope, id)
        CustomResource(
            self,
            "Schema",
            resource_type="Custom::DatabaseSchema",
            service_token=function.function_arn,
            # A function that dies without an answer would otherwise be waited for an hour.
            service_timeout=Duration.seconds(timeout.total_seconds() + 60),
            properties={"version": version},
        )

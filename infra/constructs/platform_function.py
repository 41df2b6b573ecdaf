"""A function of the platform: the one place that names runtime, layers, role, logs and tracing."""

from collections.abc import Mapping
from datetime import timedelta

from aws_cdk import AssetHashType, Duration, RemovalPolicy
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_iam as iam
from aws_cdk import aws_lambda as lambda_
from aws_cdk import aws_logs as logs
from constructs import Construct

from infra.bundling import Asset, Bundle
from infra.constructs.alarms import Alarms
from infra.constructs.network import Network
from infra.targets import Target

METRICS_NAMESPACE = "JobPlatform"


class FunctionLayers(Construct):
    """The layers that all functions share; none where the target merges them into the functions."""

    def __init__(self, scope: Construct, id: str, *, bundle: Bundle, target: Target) -> None:
        super().__init__(scope, id)
        self.versions = [
            lambda_.LayerVersion(
                self,
                name.capitalize(),
                code=_code(asset),
                compatible_runtimes=[_runtime(target)],
                description=f"{name} of the job platform",
            )
            for name, asset in bundle.layers.items()
        ]


class PlatformFunction(lambda_.Function):
    """`functions/<name>`, with the least that it needs: its own log group, role and environment."""

    def __init__(
        self,
        scope: Construct,
        id: str,
        *,
        name: str,
        timeout: timedelta,
        memory_mb: int,
        environment: Mapping[str, str],
        bundle: Bundle,
        layers: FunctionLayers,
        network: Network | None,
        alarms: Alarms,
        target: Target,
        concurrency: int | None = None,
        retries: int | None = None,
    ) -> None:
        log_group = logs.LogGroup(
            scope,
            f"{id}Logs",
            retention=logs.RetentionDays[target.log_retention],
            removal_policy=RemovalPolicy.DESTROY,
        )
        super().__init__(
            scope,
            id,
            description=f"{name} of the job platform",
            handler=f"functions.{name}.handler.lambda_handler",
            runtime=_runtime(target),
            architecture=lambda_.Architecture.custom(target.architecture),
            code=_code(bundle.function(name)),
            layers=layers.versions,
            timeout=Duration.seconds(timeout.total_seconds()),
            memory_size=memory_mb,
            reserved_concurrent_executions=concurrency,
            retry_attempts=retries,
            environment={
                **environment,
                "POWERTOOLS_SERVICE_NAME": name,
                "POWERTOOLS_LOG_LEVEL": target.log_level,
                "POWERTOOLS_METRICS_NAMESPACE": METRICS_NAMESPACE,
                "POWERTOOLS_TRACE_DISABLED": "false" if target.tracing else "true",
            },
            tracing=lambda_.Tracing.ACTIVE if target.tracing else lambda_.Tracing.DISABLED,
            role=_role(scope, f"{id}Role", log_group=log_group, in_vpc=network is not None),
            log_group=log_group,
            vpc=network.vpc if network else None,
            vpc_subnets=(
                ec2.SubnetSelection(subnet_type=ec2.SubnetType.PRIVATE_ISOLATED)
                if network
                else None
            ),
            security_groups=[network.functions] if network else None,
        )

        alarms.watch(
            f"{id}Errors",
            self.metric_errors(statistic="Sum"),
            at_least=1,
            meaning=f"The function {name} failed; its log group says why.",
        )
        alarms.watch(
            f"{id}Throttles",
            self.metric_throttles(statistic="Sum"),
            at_least=1,
            meaning=f"The function {name} was refused: no concurrency is left, its own or all.",
        )


def _runtime(target: Target) -> lambda_.Runtime:
    return lambda_.Runtime(target.runtime, lambda_.RuntimeFamily.PYTHON)


def _code(asset: Asset) -> lambda_.AssetCode:
    return lambda_.Code.from_asset(
        str(asset.path), asset_hash=asset.hash, asset_hash_type=AssetHashType.CUSTOM
    )


def _role(scope: Construct, id: str, *, log_group: logs.LogGroup, in_vpc: bool) -> iam.Role:
    """The managed policies for this would allow writing to every log group of the account."""
    policies = {
        "logs": iam.PolicyDocument(
            statements=[
                iam.PolicyStatement(
                    actions=["logs:CreateLogStream", "logs:PutLogEvents"],
                    resources=[log_group.log_group_arn],
                )
            ]
        )
    }
    if in_vpc:
        # Lambda makes the network interfaces with the function's role, and asks for exactly these.
        policies["network"] = iam.PolicyDocument(
            statements=[
                iam.PolicyStatement(
                    actions=[
                        "ec2:AssignPrivateIpAddresses",
                        "ec2:CreateNetworkInterface",
                        "ec2:DeleteNetworkInterface",
                        "ec2:DescribeNetworkInterfaces",
                        "ec2:DescribeSubnets",
                        "ec2:UnassignPrivateIpAddresses",
                    ],
                    resources=["*"],
                )
            ]
        )
    return iam.Role(
        scope,
        id,
        assumed_by=iam.ServicePrincipal("lambda.amazonaws.com"),
        inline_policies=policies,
    )

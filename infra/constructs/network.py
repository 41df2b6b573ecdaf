"""A VPC without a way out: isolated subnets, and AWS services by endpoints."""

import urllib.parse

from aws_cdk import RemovalPolicy
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_logs as logs
from constructs import Construct

from infra.targets import Target


class Network(Construct):
    """Nothing in it reaches the internet or is reached from it; no NAT gateway to pay for."""

    def __init__(
        self, scope: Construct, id: str, *, target: Target, data_database_url: str | None
    ) -> None:
        super().__init__(scope, id)
        self.vpc = ec2.Vpc(
            self,
            "Vpc",
            max_azs=2,
            nat_gateways=0,
            subnet_configuration=[
                ec2.SubnetConfiguration(
                    name="isolated", subnet_type=ec2.SubnetType.PRIVATE_ISOLATED, cidr_mask=20
                )
            ],
            gateway_endpoints={
                "S3": ec2.GatewayVpcEndpointOptions(service=ec2.GatewayVpcEndpointAwsService.S3)
            },
        )
        self.vpc.add_flow_log(
            "RejectedTraffic",
            traffic_type=ec2.FlowLogTrafficType.REJECT,
            destination=ec2.FlowLogDestination.to_cloud_watch_logs(
                logs.LogGroup(
                    self,
                    "FlowLogs",
                    retention=logs.RetentionDays[target.log_retention],
                    removal_policy=RemovalPolicy.DESTROY,
                )
            ),
        )
        self.functions = ec2.SecurityGroup(
            self,
            "Functions",
            vpc=self.vpc,
            description="The functions of the job platform",
            allow_all_outbound=False,
        )
        # S3's gateway endpoint is a route, not an address that a rule could name.
        self.functions.add_egress_rule(ec2.Peer.any_ipv4(), ec2.Port.tcp(443), "AWS endpoints")
        if data_database_url is not None:
            port = urllib.parse.urlsplit(data_database_url).port or 5432
            self.functions.add_egress_rule(ec2.Peer.any_ipv4(), ec2.Port.tcp(port), "Data database")
        for name, service in (
            ("Sqs", ec2.InterfaceVpcEndpointAwsService.SQS),
            ("SecretsManager", ec2.InterfaceVpcEndpointAwsService.SECRETS_MANAGER),
        ):
            endpoint = self.vpc.add_interface_endpoint(name, service=service, open=False)
            endpoint.connections.allow_default_port_from(self.functions)

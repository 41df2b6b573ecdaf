"""RDS for PostgreSQL that speaks TLS only, encrypted, backed up, and not deleted by accident."""

from aws_cdk import Duration, RemovalPolicy
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_rds as rds
from constructs import Construct

from infra.targets import ManagedDatabase


class Database(Construct):
    """The platform's own tables, and the adopter's data unless that lives elsewhere."""

    def __init__(
        self,
        scope: Construct,
        id: str,
        *,
        settings: ManagedDatabase,
        vpc: ec2.IVpc,
        clients: ec2.ISecurityGroup,
        removal_policy: RemovalPolicy,
        secret_removal_policy: RemovalPolicy,
    ) -> None:
        super().__init__(scope, id)
        engine = rds.DatabaseInstanceEngine.postgres(
            version=rds.PostgresEngineVersion.of(settings.version, settings.version.split(".")[0])
        )
        self.secret = rds.DatabaseSecret(self, "Secret", username="jobplatform")
        # Retained with the data that it opens: a restored snapshot has the same password.
        self.secret.apply_removal_policy(secret_removal_policy)
        self.instance = rds.DatabaseInstance(
            self,
            "Instance",
            engine=engine,
            parameters={
                "rds.force_ssl": "1",
                # A session left open holds VACUUM back; one that must idle longer says so itself.
                "idle_in_transaction_session_timeout": "300000",
                "log_min_duration_statement": "5000",
            },
            instance_type=ec2.InstanceType(settings.instance_type),
            vpc=vpc,
            vpc_subnets=ec2.SubnetSelection(subnet_type=ec2.SubnetType.PRIVATE_ISOLATED),
            multi_az=settings.multi_az,
            database_name=settings.name,
            credentials=rds.Credentials.from_secret(self.secret),
            storage_type=rds.StorageType.GP3,
            allocated_storage=settings.storage_gib,
            max_allocated_storage=settings.max_storage_gib,
            storage_encrypted=True,
            backup_retention=Duration.days(settings.backup_days),
            copy_tags_to_snapshot=True,
            deletion_protection=settings.deletion_protection,
            removal_policy=removal_policy,
            cloudwatch_logs_exports=["postgresql"],
            ca_certificate=rds.CaCertificate.RDS_CA_RSA2048_G1,
            publicly_accessible=False,
        )
        self.instance.connections.allow_default_port_from(clients)
        self.url = (
            f"postgresql://{self.instance.instance_endpoint.socket_address}/{settings.name}"
            "?sslmode=verify-full"
        )

"""What must survive: the network, the database and the bucket of results."""

from datetime import timedelta

from aws_cdk import RemovalPolicy, Stack
from aws_cdk import aws_secretsmanager as secretsmanager
from constructs import Construct

from infra.constructs.database import Database
from infra.constructs.network import Network
from infra.constructs.results_bucket import ResultsBucket
from infra.options import Options
from infra.targets import Target


class DataStack(Stack):
    def __init__(
        self,
        scope: Construct,
        id: str,
        *,
        target: Target,
        options: Options,
        keep_results_for: timedelta,
    ) -> None:
        super().__init__(scope, id, description="Async Job Platform: what must survive")
        removal_policy = RemovalPolicy.RETAIN if target.retain_data else RemovalPolicy.DESTROY
        self.termination_protection = target.retain_data
        self.network: Network | None = None
        self.database: Database | None = None
        if target.database is not None:
            self.network = Network(
                self, "Network", target=target, data_database_url=options.data_database_url
            )
            self.database = Database(
                self,
                "Database",
                settings=target.database,
                vpc=self.network.vpc,
                clients=self.network.functions,
                # A database that stayed would hold its network; a snapshot does not.
                removal_policy=RemovalPolicy.SNAPSHOT,
                secret_removal_policy=removal_policy,
            )
        self.results = ResultsBucket(
            self, "Results", keep_for=keep_results_for, removal_policy=removal_policy
        )
        # Signed cursors stay valid over deployments because their key outlives them.
        self.cursor_secret = secretsmanager.Secret(
            self,
            "CursorSecret",
            description="Signs the cursors of lists",
            generate_secret_string=secretsmanager.SecretStringGenerator(
                password_length=64, exclude_punctuation=True
            ),
            removal_policy=removal_policy,
        )

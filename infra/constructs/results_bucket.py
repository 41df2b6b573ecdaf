"""The bucket of results: private, TLS only, encrypted, and empty again by itself."""

import math
from collections.abc import Sequence
from datetime import timedelta

from aws_cdk import Duration, RemovalPolicy
from aws_cdk import aws_iam as iam
from aws_cdk import aws_s3 as s3
from constructs import Construct

RESULTS = "results/*"


class ResultsBucket(Construct):
    """Whatever the purge leaves behind, the lifecycle rules delete a day later."""

    def __init__(
        self, scope: Construct, id: str, *, keep_for: timedelta, removal_policy: RemovalPolicy
    ) -> None:
        super().__init__(scope, id)
        self.bucket = s3.Bucket(
            self,
            "Bucket",
            block_public_access=s3.BlockPublicAccess.BLOCK_ALL,
            object_ownership=s3.ObjectOwnership.BUCKET_OWNER_ENFORCED,
            encryption=s3.BucketEncryption.S3_MANAGED,
            enforce_ssl=True,
            minimum_tls_version=1.2,
            versioned=False,
            removal_policy=removal_policy,
            lifecycle_rules=[
                s3.LifecycleRule(
                    id="abandoned-uploads", abort_incomplete_multipart_upload_after=Duration.days(2)
                ),
                s3.LifecycleRule(
                    id="forgotten-results",
                    prefix=RESULTS.removesuffix("*"),
                    expiration=Duration.days(math.ceil(keep_for / timedelta(days=1)) + 1),
                ),
            ],
        )

    def grant_download(self, grantee: iam.IGrantable) -> None:
        self._grant(grantee, ["s3:GetObject"])

    def grant_write(self, grantee: iam.IGrantable) -> None:
        """Multipart uploads from start to end, and the look back at what is there."""
        self._grant(grantee, ["s3:GetObject", "s3:PutObject"])
        self.grant_clean(grantee)

    def grant_clean(self, grantee: iam.IGrantable) -> None:
        """Deletion of results and of uploads that nobody finished."""
        self._grant(
            grantee, ["s3:DeleteObject", "s3:AbortMultipartUpload", "s3:ListMultipartUploadParts"]
        )
        iam.Grant.add_to_principal(
            grantee=grantee,
            actions=["s3:ListBucket", "s3:ListBucketMultipartUploads"],
            resource_arns=[self.bucket.bucket_arn],
        )

    def _grant(self, grantee: iam.IGrantable, actions: Sequence[str]) -> None:
        iam.Grant.add_to_principal(
            grantee=grantee,
            actions=list(actions),
            resource_arns=[self.bucket.arn_for_objects(RESULTS)],
        )

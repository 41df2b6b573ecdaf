"""What the platform costs on AWS, in list prices: 1,000 small exports, and one of 10 GB.

A model, not a bill: pure functions of how much is used and of `Prices`. Times are those measured on
the embedded target or assumed as the fields of `Usage` say; change them to your own.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from tests.benchmarks.measuring import Result

GB = 1_000_000_000
HOURS_A_MONTH = 730


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prices:
    """US dollars, us-east-1, on demand, first tier, without the free tier.

    As published by AWS up to 2025; third parties still quote the same in 2026. They change seldom
    but they do, and other regions cost up to half as much again: compare with the pages named here.
    """

    lambda_gb_second: float = 0.0000133334
    """arm64. https://aws.amazon.com/lambda/pricing/"""
    lambda_request: float = 0.20e-6
    """https://aws.amazon.com/lambda/pricing/"""
    rest_api_request: float = 3.50e-6
    """https://aws.amazon.com/api-gateway/pricing/"""
    sqs_request: float = 0.40e-6
    """Standard queue. https://aws.amazon.com/sqs/pricing/"""
    s3_write: float = 0.005e-3
    """PUT, POST, LIST; each part is one. https://aws.amazon.com/s3/pricing/"""
    s3_read: float = 0.0004e-3
    """GET. https://aws.amazon.com/s3/pricing/"""
    s3_gb_month: float = 0.023
    """Standard. https://aws.amazon.com/s3/pricing/"""
    internet_gb: float = 0.09
    """Out to the internet, first 10 TB. https://aws.amazon.com/ec2/pricing/on-demand/"""
    log_gb: float = 0.50
    """CloudWatch Logs, ingestion. https://aws.amazon.com/cloudwatch/pricing/"""
    alarm_month: float = 0.10
    """Standard resolution. https://aws.amazon.com/cloudwatch/pricing/"""
    secret_month: float = 0.40
    """https://aws.amazon.com/secrets-manager/pricing/"""
    endpoint_hour: float = 0.01
    """Interface endpoint, in each availability zone. https://aws.amazon.com/privatelink/pricing/"""
    endpoint_gb: float = 0.01
    """https://aws.amazon.com/privatelink/pricing/"""
    nat_hour: float = 0.045
    """https://aws.amazon.com/vpc/pricing/"""
    nat_gb: float = 0.045
    """https://aws.amazon.com/vpc/pricing/"""
    proxy_vcpu_hour: float = 0.015
    """RDS Proxy, for each vCPU of the database, two at least.
    https://aws.amazon.com/rds/proxy/pricing/"""
    database_hour: float = 0.129
    """db.t4g.medium, PostgreSQL, two availability zones.
    https://aws.amazon.com/rds/postgresql/pricing/"""
    database_gb_month: float = 0.23
    """gp3, two availability zones. https://aws.amazon.com/rds/postgresql/pricing/"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Usage:
    """One export, from the submit to the download."""

    bytes: float
    """Of the result as it is stored."""
    worker_seconds: float
    worker_gb: float = 2.0
    api_requests: int = 4
    """A submit, two looks, and the request for the download's URL."""
    api_seconds: float = 0.015
    """Of each request."""
    api_gb: float = 1.0
    part_bytes: float = 8 * 2**20
    days_kept: float = 7.0
    log_bytes: float = 4_000
    sqs_requests: float = 3.0
    """Send, receive, delete; empty receives are in `Standing`."""
    downloads: int = 1
    to_internet: bool = False
    """Whether the customer downloads from outside the region."""


SMALL = Usage(bytes=100_000, worker_seconds=0.25)
"""A few hundred rows. The worker is warm; a cold start adds about a second to the first of many."""
LARGE = Usage(bytes=10 * GB, worker_seconds=150.0)
"""10 GB at 67 MB/s, which a function of 2 GB (1.1 vCPU) reaches where the database keeps up."""
LARGE_GZIP = dataclasses.replace(LARGE, bytes=10 * GB / 3.1)
"""The same compressed to the third that flights are."""


def export(usage: Usage, prices: Prices | None = None) -> dict[str, float]:
    """Dollars of one export, by what they are paid for."""
    prices = prices or Prices()
    parts = max(1.0, usage.bytes / usage.part_bytes)
    # One part is one PutObject; more take two requests around them. And the manifest.
    writes = 1 + (parts if parts == 1 else parts + 2)
    lambda_seconds = (
        usage.worker_seconds * usage.worker_gb
        + usage.api_requests * usage.api_seconds * usage.api_gb
    )
    return {
        "API Gateway": usage.api_requests * prices.rest_api_request,
        "Lambda": lambda_seconds * prices.lambda_gb_second
        + (usage.api_requests + 1) * prices.lambda_request,
        "SQS": usage.sqs_requests * prices.sqs_request,
        "S3 requests": writes * prices.s3_write + usage.downloads * prices.s3_read,
        "S3 storage": usage.bytes / GB * prices.s3_gb_month * usage.days_kept * 12 / 365,
        "logs": usage.log_bytes / GB * prices.log_gb,
        "internet": (
            usage.bytes / GB * prices.internet_gb * usage.downloads if usage.to_internet else 0.0
        ),
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Standing:
    """What costs by the month whether anybody exports or not."""

    endpoints: int = 2
    """Interface endpoints (SQS and Secrets Manager; S3's gateway endpoint is free)."""
    zones: int = 2
    nat: bool = False
    """Instead of the endpoints: a NAT gateway in each zone."""
    proxy: bool = False
    database_vcpus: int = 2
    database_storage_gb: int = 50
    database: bool = True
    """False: the platform's tables are in a database that is there anyway."""
    alarms: int = 18
    secrets: int = 2
    pollers: int = 5
    """Long polls that Lambda keeps open on an idle queue, 20 s each."""


def month(standing: Standing, prices: Prices | None = None) -> dict[str, float]:
    """Dollars a month, by what they are paid for."""
    prices = prices or Prices()
    dispatcher_runs = 60 * HOURS_A_MONTH
    polls = standing.pollers * HOURS_A_MONTH * 3600 / 20
    return {
        "endpoints": (
            0.0
            if standing.nat
            else standing.endpoints * standing.zones * prices.endpoint_hour * HOURS_A_MONTH
        ),
        "NAT": standing.zones * prices.nat_hour * HOURS_A_MONTH if standing.nat else 0.0,
        "RDS Proxy": (
            max(2, standing.database_vcpus) * prices.proxy_vcpu_hour * HOURS_A_MONTH
            if standing.proxy
            else 0.0
        ),
        "database": (
            prices.database_hour * HOURS_A_MONTH
            + standing.database_storage_gb * prices.database_gb_month
            if standing.database
            else 0.0
        ),
        "dispatcher": dispatcher_runs
        * (0.05 * 0.5 * prices.lambda_gb_second + prices.lambda_request),
        "idle queue": polls * prices.sqs_request,
        "alarms": standing.alarms * prices.alarm_month,
        "secrets": standing.secrets * prices.secret_month,
    }


def through_nat(usage: Usage, prices: Prices | None = None) -> float:
    """Dollars more for one export whose result passes a NAT gateway instead of S3's endpoint."""
    prices = prices or Prices()
    return usage.bytes / GB * prices.nat_gb


def total(parts: Mapping[str, float]) -> float:
    return sum(parts.values())


def run(bench: Any) -> Iterator[Result]:
    thousand = {name: 1000 * dollars for name, dollars in export(SMALL).items()}
    for name, parts in (
        ("1,000 small exports", thousand),
        ("one export of 10 GB", export(LARGE)),
        ("one export of 10 GB, gzip", export(LARGE_GZIP)),
        ("a month, endpoints", month(Standing())),
        ("a month, NAT instead", month(Standing(nat=True))),
        ("a month, with RDS Proxy", month(Standing(proxy=True))),
    ):
        dollars = total(parts)
        largest = sorted(parts.items(), key=lambda item: -item[1])[:3]
        yield Result(
            name=f"cost of {name}, US dollars",
            ratio=dollars,
            goal=None,
            spread=(dollars, dollars),
            ours=f"${dollars:.3f}",
            theirs="",
            note=", ".join(f"{what} ${value:.3f}" for what, value in largest),
        )

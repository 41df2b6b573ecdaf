"""boto3 clients with time limits, one of each a process."""

import functools
from typing import Any

from jobplatform import faults, results
from jobplatform.settings import ResultSettings

_SMALL_BYTES = 64 * 1024


@functools.cache
def client(service: str, endpoint_url: str | None = None) -> Any:
    """A client that gives up in seconds rather than hold a request for minutes."""
    import boto3
    from botocore.config import Config

    made = boto3.client(
        service,  # type: ignore[call-overload]
        endpoint_url=endpoint_url,
        config=Config(
            connect_timeout=3,
            read_timeout=60 if service == "s3" else 10,
            retries={"mode": "standard", "max_attempts": 3},
            max_pool_connections=8,
            # A fixed one: composing boto3's own anew for each request takes a tenth of its time.
            user_agent=f"async-job-platform boto3/{boto3.__version__}",
            # Without this, boto3 still presigns in version 2 in some regions, which S3 refuses for
            # buckets with KMS keys and for response headers.
            signature_version="s3v4" if service == "s3" else None,
            s3={
                "addressing_style": "path" if endpoint_url else "auto",
                # Every body has its own checksum: signing it would be to hash it once more.
                "payload_signing_enabled": False,
            },
        ),
    )
    if service == "s3":
        made.meta.events.register_last("before-call.s3", _send_at_once)
    faults.watch(made)
    return made


def _send_at_once(params: dict[str, Any], **_: Any) -> None:
    """A small body does not wait until S3 says that it wants it (RFC 9110, 10.1.1), as boto3 has
    every body wait."""
    from botocore.utils import determine_content_length

    if "Expect" in params["headers"]:
        length = determine_content_length(params["body"])
        if length is not None and length <= _SMALL_BYTES:
            del params["headers"]["Expect"]


def bucket(settings: ResultSettings) -> results.Bucket:
    public = settings.public_endpoint_url
    return results.Bucket(
        client("s3"), settings.bucket, public_client=client("s3", public) if public else None
    )

"""Clients of AWS as the functions use them."""

from typing import Any

import pytest

import jobplatform.aws
from jobplatform import results


@pytest.mark.parametrize(("size", "waits"), [(0, False), (64 * 1024, False), (64 * 1024 + 1, True)])
def test_only_a_large_body_waits_until_s3_wants_it(
    bucket: results.Bucket, size: int, waits: bool
) -> None:
    client = jobplatform.aws.client.__wrapped__("s3")
    headers: list[Any] = []
    client.meta.events.register_first(
        "before-send.s3.PutObject", lambda request, **_: headers.append(request.headers)
    )

    client.put_object(Bucket=bucket.name, Key="some", Body=b"x" * size)

    assert [header.get("Expect") for header in headers] == [b"100-continue" if waits else None]
    found = bucket.client.get_object(Bucket=bucket.name, Key="some")["Body"].read()
    assert found == b"x" * size

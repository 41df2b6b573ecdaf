"""Events and a context as Lambda gives them to the handlers."""

import json
import time
import uuid
from typing import Any

from tests.benchmarks.bench import API_KEY


class Context:
    """Of an invocation that has 15 minutes."""

    function_name = "benchmark"
    memory_limit_in_mb = 2048
    invoked_function_arn = "arn:aws:lambda:us-east-1:000000000000:function:benchmark"
    log_stream_name = "benchmark"

    def __init__(self, seconds: float = 900.0) -> None:
        self.aws_request_id = str(uuid.uuid4())
        self._until = time.monotonic() + seconds

    def get_remaining_time_in_millis(self) -> int:
        return int((self._until - time.monotonic()) * 1000)


def doorbell(job_id: str = "00000000-0000-0000-0000-000000000000") -> dict[str, Any]:
    """What SQS gives the worker."""
    return {
        "Records": [
            {
                "messageId": str(uuid.uuid4()),
                "receiptHandle": "handle",
                "body": json.dumps({"version": 1, "job_id": job_id}),
                "attributes": {
                    "ApproximateReceiveCount": "1",
                    "SentTimestamp": "1767225600000",
                    "SenderId": "000000000000",
                    "ApproximateFirstReceiveTimestamp": "1767225600000",
                },
                "messageAttributes": {},
                "md5OfBody": "",
                "eventSource": "aws:sqs",
                "eventSourceARN": "arn:aws:sqs:us-east-1:000000000000:jobs",
                "awsRegion": "us-east-1",
            }
        ]
    }


def request(
    method: str, path: str, body: dict[str, Any] | None = None, **headers: str
) -> dict[str, Any]:
    """What a REST API gives the API function; names of headers with `_` for `-`."""
    sent = {
        "accept": "*/*",
        "accept-encoding": "gzip, deflate",
        "content-type": "application/json",
        "host": "example.execute-api.us-east-1.amazonaws.com",
        "user-agent": "benchmark",
        "x-api-key": API_KEY,
        "x-forwarded-for": "192.0.2.1",
        "x-forwarded-proto": "https",
        **{name.replace("_", "-"): value for name, value in headers.items()},
    }
    request_id = str(uuid.uuid4())
    return {
        "resource": "/jobs",
        "path": path,
        "httpMethod": method,
        "headers": sent,
        "multiValueHeaders": {name: [value] for name, value in sent.items()},
        "queryStringParameters": None,
        "multiValueQueryStringParameters": None,
        "pathParameters": None,
        "stageVariables": None,
        "requestContext": {
            "accountId": "000000000000",
            "apiId": "example",
            "domainName": "example.execute-api.us-east-1.amazonaws.com",
            "extendedRequestId": "extended",
            "httpMethod": method,
            "identity": {"sourceIp": "192.0.2.1", "userAgent": "benchmark"},
            "path": f"/prod{path}",
            "protocol": "HTTP/1.1",
            "requestId": request_id,
            "requestTime": "01/Jan/2026:00:00:00 +0000",
            "requestTimeEpoch": 1767225600000,
            "resourceId": "example",
            "resourcePath": "/jobs",
            "stage": "prod",
        },
        "body": None if body is None else json.dumps(body),
        "isBase64Encoded": False,
    }

"""What the API function keeps between requests; made on first use, never at import."""

import dataclasses
import functools
import time

import sqlalchemy as sa

from jobplatform import aws, client_store, database, errors, faults, results
from jobplatform.queue import Queue
from jobplatform.settings import (
    ApiSettings,
    DatabaseSettings,
    FaultSettings,
    JobSettings,
    QueueSettings,
    ResultSettings,
)

_CALLER_SECONDS = 30
_clock = time.monotonic


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resources:
    engine: sa.Engine
    queue: Queue
    bucket: results.Bucket
    jobs: JobSettings
    results: ResultSettings
    api: ApiSettings


@functools.cache
def get() -> Resources:
    faults.switch_on(FaultSettings.from_env(), function="api")
    queue = QueueSettings.from_env()
    return Resources(
        engine=database.create_engine(
            DatabaseSettings.from_env(), application_name="jobplatform-api"
        ),
        queue=Queue(aws.client("sqs"), queue.url),
        bucket=aws.bucket(ResultSettings.from_env()),
        jobs=JobSettings.from_env(),
        results=ResultSettings.from_env(),
        api=ApiSettings.from_env(),
    )


@functools.cache
def cursor_secret() -> bytes:
    settings = get().api
    if settings.cursor_secret_arn:
        found = aws.client("secretsmanager").get_secret_value(SecretId=settings.cursor_secret_arn)
        return str(found["SecretString"]).encode()
    if not settings.cursor_secret:
        raise ValueError("set API_CURSOR_SECRET or API_CURSOR_SECRET_ARN")
    return settings.cursor_secret.encode()


_callers: dict[bytes, tuple[float, client_store.Caller]] = {}


def caller(api_key: str | None) -> client_store.Caller:
    """Who a key belongs to. Raises `errors.UnknownClient`.

    Known callers are remembered for half a minute, which saves a query a request. A key that is
    revoked stops at once all the same, in API Gateway, which is asked before us.
    """
    if not api_key:
        raise errors.UnknownClient
    digest = client_store.key_hash(api_key)
    known = _callers.get(digest)
    if known and known[0] > _clock():
        return known[1]
    with database.transaction(get().engine, single=True) as conn:
        found = client_store.find_caller(conn, api_key)
    if found is None:
        _callers.pop(digest, None)
        raise errors.UnknownClient
    if len(_callers) > 1_000:
        _callers.clear()
    _callers[digest] = (_clock() + _CALLER_SECONDS, found)
    return found

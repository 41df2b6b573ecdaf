"""Idempotency by Powertools, its record being the job row itself.

Putting the record is inserting the job, in one statement and transaction; updating it is nothing to
do. So there is no gap between "key taken" and "job made", and nothing that a crash could leave in
progress.
"""

import contextlib
import functools
import json
from collections.abc import Callable, Mapping
from typing import Any

import sqlalchemy as sa
from aws_lambda_powertools.utilities.idempotency import IdempotencyConfig
from aws_lambda_powertools.utilities.idempotency import exceptions as powertools
from aws_lambda_powertools.utilities.idempotency.base import IdempotencyHandler
from aws_lambda_powertools.utilities.idempotency.persistence.base import BasePersistenceLayer
from aws_lambda_powertools.utilities.idempotency.persistence.datarecord import DataRecord

from jobplatform import database, errors, faults, job_store, jobs


class JobRecord(BasePersistenceLayer):
    """A persistence layer for one request: puts `new`, or finds the job that its key names."""

    def __init__(
        self,
        engine: sa.Engine,
        new: job_store.NewJob,
        max_queued: int,
        refusal: errors.RequestError | None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._engine = engine
        self._new = new
        self._max_queued = max_queued
        self._refusal = refusal
        self.job: jobs.Job | None = None

    def _put_record(self, data_record: DataRecord) -> None:
        key = self._new.idempotency_key
        # Further rounds only where a key's time is over, or where others are at it meanwhile.
        for tries in range(3):
            self.job = self._insert(data_record.payload_hash)
            if self.job is not None:
                return
            self.job = self._find(key) if key else None
            if self.job is not None:
                stored = _record(data_record.idempotency_key, self.job)
                self._validate_payload(data_payload=data_record, stored_data_record=stored)
                raise powertools.IdempotencyItemAlreadyExistsError(old_data_record=stored)
            if self._refusal is not None:
                raise self._refusal
            released = key and self._release(key)
            # In the first round the key may have been released by somebody else.
            if not released and (tries or not key):
                raise errors.TooManyQueuedJobs(
                    f"This client has {self._max_queued} jobs waiting or running, which is"
                    " all its plan allows; wait until some have ended."
                )
        raise errors.SubmitInProgress

    def _insert(self, request_hash: str) -> jobs.Job | None:
        if self._refusal is not None:
            return None
        faults.point("submit.before_insert")
        with self._transaction() as conn:
            return job_store.insert(
                conn, self._new, request_hash=request_hash, max_queued=self._max_queued
            )

    def _find(self, key: str) -> jobs.Job | None:
        with self._transaction() as conn:
            return job_store.find_by_key(conn, self._new.client_id, key)

    def _release(self, key: str) -> bool:
        with self._transaction() as conn:
            return job_store.release_expired_key(conn, self._new.client_id, key)

    def _transaction(self) -> contextlib.AbstractContextManager[sa.Connection]:
        """Of one statement, which a submit then waits for once."""
        return database.client_transaction(self._engine, self._new.client_id, single=True)

    def _get_record(self, idempotency_key: str) -> DataRecord:
        # Only asked where a conflict came without its record, and ours always has it.
        raise powertools.IdempotencyItemNotFoundError

    def _update_record(self, data_record: DataRecord) -> None:
        """Nothing to do: the job says for itself how it is."""

    def _delete_record(self, data_record: DataRecord) -> None:
        """Nothing to do: an accepted job stays accepted."""


def submit_once(
    new: job_store.NewJob,
    *,
    request: Mapping[str, Any],
    max_queued: int,
    engine: sa.Engine,
    accepted: Callable[[jobs.Job], None],
    refusal: errors.RequestError | None,
    lambda_context: Any,
) -> tuple[jobs.Job, bool]:
    """Inserts the job, or finds the one that its key names: (job, whether it is a replay).

    `accepted` is called once for a new job, after its commit. Raises `errors.IdempotencyKeyReused`
    where the key came with another request before, `refusal` where it is given and the key names
    no job, and whatever the insert raises.
    """
    store = JobRecord(engine, new, max_queued, refusal)
    replayed = False

    def accept() -> None:
        assert store.job is not None
        accepted(store.job)

    def replay(response: Any, record: DataRecord) -> Any:
        nonlocal replayed
        replayed = True
        return response

    # A request without a key is an idempotent operation of its own. As text, because Powertools
    # copies what it is given to its last leaf.
    payload = {
        "key": new.idempotency_key or str(new.id),
        "request": json.dumps(request, sort_keys=True),
    }
    handler = IdempotencyHandler(
        function=accept,
        function_payload=payload,
        config=_config(lambda_context, replay, int(new.idempotency_ttl.total_seconds())),
        persistence_store=store,
        key_prefix=str(new.client_id),
        function_args=(),
        function_kwargs={},
    )
    try:
        handler.handle()
    except powertools.IdempotencyValidationError as error:
        raise errors.IdempotencyKeyReused from error
    except powertools.IdempotencyInconsistentStateError as error:
        raise errors.SubmitInProgress from error
    except powertools.IdempotencyPersistenceLayerError as error:
        if isinstance(error.__cause__, Exception):
            raise error.__cause__ from None
        raise
    assert store.job is not None
    return store.job, replayed


def _config(lambda_context: Any, hook: Callable[..., Any], expires: int) -> IdempotencyConfig:
    return IdempotencyConfig(
        event_key_jmespath="key",
        payload_validation_jmespath="request",
        raise_on_no_idempotency_key=True,
        expires_after_seconds=expires,
        hash_function="sha256",
        lambda_context=lambda_context,
        response_hook=functools.partial(hook),
    )


def _record(idempotency_key: str, job: jobs.Job) -> DataRecord:
    return DataRecord(
        idempotency_key=idempotency_key,
        status="COMPLETED",
        response_data="{}",
        payload_hash=job.request_hash or "",
    )

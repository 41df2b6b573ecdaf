"""Running a job: claim, export, publish; every write is fenced by the attempt's token."""

import contextlib
import dataclasses
import datetime as dt
import threading
import traceback
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pydantic
import sqlalchemy as sa

from jobplatform import (
    database,
    errors,
    job_store,
    jobs,
    plans,
    results,
    templating,
)
from jobplatform import export as exporting
from jobplatform.observability import logger
from jobplatform.queue import Queue
from jobplatform.settings import (
    DatabaseSettings,
    DataDatabaseSettings,
    JobSettings,
    ResultSettings,
    WorkerSettings,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Worker:
    """What a worker needs; `name` says in the audit trail where an attempt ran."""

    name: str
    engine: sa.Engine
    data: DatabaseSettings | DataDatabaseSettings
    bucket: results.Bucket
    queue: Queue
    jobs: JobSettings
    results: ResultSettings
    settings: WorkerSettings


def drain(worker: Worker, *, seconds_left: Callable[[], float], clock: Callable[[], float]) -> int:
    """Runs due jobs one after the other for a short time: the number that were run.

    Small jobs then cost less than an invocation each. When the time is over while jobs wait, they have doorbells of
    their own, and the dispatcher behind those.
    """
    until = clock() + worker.settings.drain_for.total_seconds()
    done = 0
    while run_job(worker, seconds_left=seconds_left) is not None:
        done += 1
        if clock() >= until:
            break
    return done


def run_job(worker: Worker, *, seconds_left: Callable[[], float]) -> jobs.Job | None:
    """Runs the job that is next and answers it as it was claimed; None where nothing is due.

    A plain exception is a transient error and means another attempt later, `errors.PermanentFailure` the end.
    """
    token = uuid.uuid4()
    weights = {plan.name: plan.weight for plan in plans.PLANS.values()}
    with database.transaction(worker.engine) as conn:
        job = job_store.claim(
            conn, token=token, worker=worker.name, lease=worker.jobs.lease, weights=weights
        )
    if job is None:
        _ring_for_the_almost_due(worker)
        return None
    logger.append_keys(job_id=str(job.id), template=job.template_name, attempt=job.attempts)
    attempt = _Attempt(worker, job, token)
    try:
        with attempt.heartbeat():
            attempt.run(seconds_left)
    finally:
        logger.remove_keys(["job_id", "template", "attempt"])
    return job


def _ring_for_the_almost_due(worker: Worker) -> None:
    """A doorbell that came a moment too early would be lost until the dispatcher's next tick."""
    with database.transaction(worker.engine) as conn:
        seconds = job_store.next_due_in(conn)
    if seconds is not None and seconds <= 5:
        worker.queue.ring(uuid.UUID(int=0), after=seconds)


class _Attempt:
    """One try at one job, its lease, and what it has written so far."""

    def __init__(self, worker: Worker, job: jobs.Job, token: uuid.UUID) -> None:
        self.worker = worker
        self.job = job
        self.token = token
        self.writer: results.ResultWriter | None = None
        self.source: exporting.Source | None = None
        self.as_of: dt.datetime | None = None
        self.estimate: int | None = None
        self.interrupted: errors.ExecutionError | None = None
        self._done = threading.Event()

    def run(self, seconds_left: Callable[[], float]) -> None:
        try:
            template, params = self._template()
            stored, exported = self._export(template, params)
            self._publish(template, stored, exported)
        except errors.LeaseLost:
            self._discard()
            self._close("worker_lost", "lease_lost", "another attempt owns the job")
            logger.warning("lease lost")
        except errors.CancelRequested:
            self._discard()
            self._end(jobs.JobStatus.CANCELLED, "cancelled by the client", None, None)
        except errors.RetryLater as error:
            self._discard()
            self._requeue(error.after, error.message, counted=False, detail=error.message)
        except errors.PermanentFailure as error:
            self._discard()
            self._fail(error.code, error.safe_message)
        except Exception as error:
            self._discard()
            self._retry_or_fail(error)

    @contextlib.contextmanager
    def heartbeat(self) -> Iterator[None]:
        """Renews the lease beside the work, and stops the work when it is lost or the job is cancelled."""
        beating = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        beating.start()
        try:
            yield
        finally:
            self._done.set()
            beating.join()

    def _beat(self) -> None:
        while not self._done.wait(self.worker.jobs.heartbeat.total_seconds()):
            try:
                with database.transaction(self.worker.engine) as conn:
                    cancel = job_store.heartbeat(
                        conn,
                        self.job.id,
                        token=self.token,
                        lease=self.worker.jobs.lease,
                        rows=self.writer.rows if self.writer else 0,
                        bytes_=self.writer.bytes_in if self.writer else 0,
                        estimate=self.estimate,
                    )
            except Exception:
                # The lease is longer than many heartbeats; one that fails is not the end.
                logger.warning("heartbeat failed", exc_info=True)
                continue
            if cancel is None:
                self._interrupt(errors.LeaseLost())
            elif cancel:
                self._interrupt(errors.CancelRequested())
            else:
                continue
            return

    def _interrupt(self, reason: errors.ExecutionError) -> None:
        self.interrupted = reason
        source = self.source
        if source is not None:
            try:
                source.cancel()
            except Exception:
                logger.warning("query not cancelled, closing its connection", exc_info=True)
                source.close()

    def _check(self) -> None:
        if self.interrupted is not None:
            raise self.interrupted

    def _template(self) -> tuple[templating.Template, pydantic.BaseModel]:
        try:
            template = templating.get(self.job.template_name)
            return template, template.parse(self.job.parameters)
        except errors.TemplateNotFound as error:
            raise errors.TemplateRejected(error.message) from error
        except pydantic.ValidationError as error:
            raise errors.TemplateRejected(str(error)) from error

    def _export(
        self, template: templating.Template, params: pydantic.BaseModel
    ) -> tuple[results.Stored, exporting.Exported]:
        settings = self.worker.settings
        plan = plans.PLANS.get(self.job.plan)
        max_rows = _smallest(template.max_rows, plan.max_rows if plan else None)
        writer = self.writer = results.ResultWriter(
            self.worker.bucket,
            jobs.result_key(self.job, self.token),
            content_type=self.job.format.content_type,
            compression=self.job.compression,
            part_bytes=settings.part_bytes,
            max_bytes=_smallest(template.max_bytes, plan.max_bytes if plan else None),
        )

        def write(chunk: bytes, rows: int) -> None:
            self._check()
            writer.write(chunk, rows)
            # One row more: the header is not known to be one here.
            if max_rows is not None and writer.rows > max_rows + 1:
                raise errors.ResultTooLarge(f"more than {max_rows} rows")

        timeout = min(template.statement_timeout or dt.timedelta.max, settings.statement_timeout)
        try:
            with exporting.Source(self.worker.data, statement_timeout=timeout) as source:
                self.source = source
                self._check()
                exported = source.export(
                    template,
                    params,
                    format=self.job.format,
                    write=write,
                    estimated=lambda rows: setattr(self, "estimate", rows),
                )
        except Exception:
            # Of a query that was stopped on purpose, the purpose is the reason.
            self._check()
            raise
        self.as_of = exported.as_of
        if max_rows is not None and writer.rows - exported.header_rows > max_rows:
            raise errors.ResultTooLarge(f"more than {max_rows} rows")
        self._check()
        return writer.complete(header_rows=exported.header_rows), exported

    def _publish(
        self,
        template: templating.Template,
        stored: results.Stored,
        exported: exporting.Exported,
    ) -> None:
        assert self.writer is not None
        self.worker.bucket.put_manifest(
            self.writer.key, _manifest(self.job, template, stored, exported)
        )
        with database.transaction(self.worker.engine) as conn:
            published = job_store.publish(
                conn,
                self.job.id,
                token=self.token,
                result_ttl=self.worker.results.ttl,
                retention=self.worker.jobs.retention,
                key=self.writer.key,
                rows=stored.rows,
                bytes_=stored.bytes,
                sha256=stored.sha256,
                as_of=exported.as_of,
                consistency=template.consistency,
            )
            if published:
                job_store.close_attempt(
                    conn,
                    self.token,
                    outcome="published",
                    rows=stored.rows,
                    bytes_=stored.bytes,
                    as_of=exported.as_of,
                )
        if not published:
            with database.transaction(self.worker.engine) as conn:
                job = job_store.get(conn, self.job.id)
            owned = job is not None and job.attempt_token == self.token
            raise errors.CancelRequested() if owned else errors.LeaseLost()
        logger.info("result published", rows=stored.rows, bytes=stored.bytes)

    def _discard(self) -> None:
        """Removes what this attempt wrote. What fails here is done by the dispatcher, which knows the attempt."""
        if self.writer is None:
            return
        try:
            self.writer.abort()
        except Exception:
            logger.warning("upload not aborted", exc_info=True)

    def _retry_or_fail(self, error: Exception) -> None:
        delay = jobs.retry_delay(self.job.attempts, self.worker.jobs.retry_delays)
        state = database.sqlstate(error)
        if delay is None or (state is not None and not database.is_transient(error)):
            code = "database_error" if state else "internal_error"
            self._fail(code, "The report could not be made.")
            return
        logger.warning("attempt failed, will be tried again", exc_info=True)
        detail = traceback.format_exc()
        if self._requeue(delay, f"retry after {type(error).__name__}", counted=True, detail=detail):
            self.worker.queue.ring(self.job.id, after=delay.total_seconds())

    def _requeue(self, after: dt.timedelta, reason: str, *, counted: bool, detail: str) -> bool:
        with database.transaction(self.worker.engine) as conn:
            requeued = job_store.requeue(
                conn, self.job.id, token=self.token, after=after, reason=reason, counted=counted
            )
            if requeued:
                self._close_in(conn, "retry", "transient_error", detail)
        if not requeued:
            self._settle_lost_or_cancelled()
        return requeued

    def _settle_lost_or_cancelled(self) -> None:
        """The job would not be queued again: it was cancelled meanwhile, or is another's."""
        self._end(jobs.JobStatus.CANCELLED, "cancelled by the client", None, None)

    def _fail(self, code: str, safe_message: str) -> None:
        logger.exception("job failed", code=code)
        self._end(jobs.JobStatus.FAILED, code, code, safe_message)

    def _end(
        self, status: jobs.JobStatus, reason: str, code: str | None, safe_message: str | None
    ) -> None:
        with database.transaction(self.worker.engine) as conn:
            ended = job_store.end(
                conn,
                self.job.id,
                token=self.token,
                status=status,
                reason=reason,
                retention=self.worker.jobs.retention,
                error_code=code,
                error_message=safe_message,
            )
            detail = traceback.format_exc() if code else None
            self._close_in(conn, str(status) if ended else "worker_lost", code, detail)

    def _close(self, outcome: str, code: str | None, detail: str | None) -> None:
        with database.transaction(self.worker.engine) as conn:
            self._close_in(conn, outcome, code, detail)

    def _close_in(
        self, conn: sa.Connection, outcome: str, code: str | None, detail: str | None
    ) -> None:
        job_store.close_attempt(
            conn,
            self.token,
            outcome=outcome,
            rows=self.writer.rows if self.writer else 0,
            bytes_=self.writer.bytes_in if self.writer else 0,
            as_of=self.as_of,
            error_code=code,
            error_detail=detail,
        )


def _smallest(*limits: int | None) -> int | None:
    return min((limit for limit in limits if limit is not None), default=None)


def _manifest(
    job: jobs.Job,
    template: templating.Template,
    stored: results.Stored,
    exported: exporting.Exported,
) -> dict[str, Any]:
    return {
        "manifest_version": 1,
        "job_id": str(job.id),
        "template": {"name": template.name, "version": template.version},
        "parameters": job.parameters,
        "as_of": exported.as_of.isoformat(),
        "consistency": template.consistency,
        "order": list(template.order),
        "format": job.format.value,
        "compression": job.compression.value,
        "columns": [dataclasses.asdict(column) for column in exported.columns],
        "rows": stored.rows,
        "bytes": stored.bytes,
        "sha256": stored.sha256,
        "parts": [
            {
                "number": part.number,
                "rows": part.rows,
                "bytes": part.bytes,
                "sha256": part.sha256,
            }
            for part in stored.parts
        ],
    }

"""Running a job: claim, export, publish; every write is fenced by the attempt's token."""

import contextlib
import dataclasses
import datetime as dt
import functools
import random
import threading
import time
import traceback
import uuid
from collections.abc import Callable
from typing import Any

import pydantic
import sqlalchemy as sa
from aws_lambda_powertools.metrics import MetricUnit

from jobplatform import (
    database,
    errors,
    faults,
    job_store,
    jobs,
    plans,
    results,
    templating,
)
from jobplatform import export as exporting
from jobplatform.observability import logger, metrics
from jobplatform.queue import Queue
from jobplatform.settings import (
    DatabaseSettings,
    DataDatabaseSettings,
    JobSettings,
    ResultSettings,
    WorkerSettings,
)

# What cannot be handed over is stopped when so little time is left, before Lambda kills it. Where
# code of a template does not listen, its end is at least written down.
_STOP_SECONDS = 10.0
_WRITE_DOWN_SECONDS = 4.0
_LEAVE_SECONDS = 1.0
_EARLY_SECONDS = 5.0
_INTERRUPT_AGAIN_SECONDS = 0.5
_TAKEN_OVER_POLL_SECONDS = 0.25
# A checkpoint is written whole, so one of many parts is written more rarely.
_SAVE_PAUSE_A_PART = 0.02
# So many times a chain may be lost before that counts as an attempt.
_LOST_CHAINS = 10
# What nobody took over is tried again within this time, by chance: exports that wait for each
# other's workers then do not meet again.
_SPREAD = dt.timedelta(minutes=15)
# Raise it when a checkpoint changes: an export under way then starts over with the new code.
_CHECKPOINT_FORMAT = 3


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
    kept: exporting.Kept | None = None
    """For a connection from one job to the next."""
    in_hand: "set[_Attempt]" = dataclasses.field(default_factory=set)
    """What this process is running now."""


def drain(
    worker: Worker,
    *,
    bell: uuid.UUID,
    seconds_left: Callable[[], float],
    clock: Callable[[], float],
) -> int:
    """Runs due jobs one after the other for a short time: the number that were run.

    `bell` is the job that the doorbell was rung for; any job may be next.

    Small jobs then cost less than an invocation each. When the time is over while jobs wait, they
    have doorbells of their own, and the dispatcher behind those.
    """
    until = clock() + worker.settings.drain_for.total_seconds()
    done: list[uuid.UUID] = []
    kept = exporting.Kept()
    worker = dataclasses.replace(worker, kept=kept)
    try:
        while (job := run_job(worker, seconds_left=seconds_left)) is not None:
            done.append(job.id)
            if clock() >= until:
                return len(done)
    finally:
        kept.close()
    # Of a job that was run here, a later attempt has a doorbell of its own.
    if bell not in done:
        _ring_again_if_early(worker, bell)
    return len(done)


def run_job(worker: Worker, *, seconds_left: Callable[[], float]) -> jobs.Job | None:
    """Runs the job that is next and answers it as it was claimed; None where nothing is due.

    A plain exception is a transient error and means another attempt later,
    `errors.PermanentFailure` the end.
    """
    token = uuid.uuid4()
    weights = {plan.name: plan.weight for plan in plans.PLANS.values()}
    with database.transaction(worker.engine, single=True) as conn:
        job = job_store.claim(
            conn, token=token, worker=worker.name, lease=worker.jobs.lease, weights=weights
        )
    if job is None:
        return None
    logger.append_keys(job_id=str(job.id), template=job.template_name, attempt=job.attempts)
    faults.point("claim.after")
    attempt = _Attempt(worker, job, token, seconds_left)
    worker.in_hand.add(attempt)
    try:
        attempt.run()
    finally:
        worker.in_hand.discard(attempt)
        logger.remove_keys(["job_id", "template", "attempt"])
    return job


def give_back(worker: Worker) -> None:
    """For a process that is told to end: what it runs is queued again and counts as no attempt."""
    for attempt in list(worker.in_hand):
        try:
            attempt.give_back()
        except Exception:
            logger.exception("job not given back")


def _ring_again_if_early(worker: Worker, bell: uuid.UUID) -> None:
    """A doorbell that came a moment too early would be lost until the dispatcher's next tick.

    Other jobs have doorbells of their own: to ring for them too would keep every doorbell alive.
    """
    try:
        with database.transaction(worker.engine, single=True) as conn:
            seconds = job_store.due_in(conn, bell)
        if seconds is not None and seconds <= _EARLY_SECONDS:
            # A job that is due but locked would have its doorbell come back at once.
            worker.queue.ring(bell, after=max(1.0, seconds))
    except Exception:
        # The dispatcher rings for every job that nobody started.
        logger.warning("doorbell not rung again", exc_info=True)


class _HandOver(Exception):
    """Not an error: the time of this invocation ends, and the export goes on in another."""


class _OutOfTime(errors.ExecutionError):
    """The time of this invocation ended where the export could not be handed over."""

    code = "out_of_time"


class _Attempt:
    """One try at one job, its lease, and what it has written so far."""

    def __init__(
        self,
        worker: Worker,
        job: jobs.Job,
        token: uuid.UUID,
        seconds_left: Callable[[], float],
    ) -> None:
        self.worker = worker
        self.job = job
        self.token = token
        self.seconds_left = seconds_left
        self.upload_token = token
        self.writer: results.ResultWriter | None = None
        self.export: exporting.Export | None = None
        self.holder: exporting.Session | None = None
        self.interrupted: errors.ExecutionError | None = None
        self._template_version = job.template_version
        self._started_over = False
        self._lost_chains = 0
        self._chain_lost = False
        self._max_age: dt.timedelta | None = None
        self._resumed_parts = 0
        self._saved_parts = 0
        self._saved_at = 0.0
        self._live = False
        self._leaving = False
        self._handing_over = False
        self._taken_over = False
        self._handed_over = False
        self._holding = threading.Lock()
        self._ended = threading.Event()
        self._heartbeat = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def run(self) -> None:
        self._heartbeat.start()
        try:
            self._run()
        finally:
            self._stop_heartbeat()
            if self.holder is not None:
                self.holder.close()
            if self.export is not None:
                age = self.export.snapshot_age.total_seconds()
                metrics.add_metric(name="SnapshotAge", unit=MetricUnit.Seconds, value=age)

    def _run(self) -> None:
        try:
            template, params = self._template()
            stored = self._export(template, params)
            self._publish(template, stored)
        except _HandOver:
            self._hand_over()
        except errors.LeaseLost:
            self._lose()
        except errors.CancelRequested:
            self._cancel()
        except errors.PermanentFailure as error:
            self._discard()
            self._fail(error.code, error.safe_message)
        except Exception as error:
            self._retry_or_fail(error)

    def _template(self) -> tuple[templating.Template, pydantic.BaseModel]:
        try:
            template = templating.get(self.job.template_name)
            return template, template.parse(self.job.parameters)
        except errors.TemplateNotFound as error:
            raise errors.TemplateRejected(error.message) from error
        except pydantic.ValidationError as error:
            raise errors.TemplateRejected(str(error)) from error

    def _export(self, template: templating.Template, params: pydantic.BaseModel) -> results.Stored:
        self._live = template.consistency == "live"
        self._template_version = template.version
        self._max_age = template.max_snapshot_age
        plan = plans.PLANS.get(self.job.plan)
        max_rows = _smallest(template.max_rows, plan.max_rows if plan else None)
        try:
            with self._open(template, params, plan) as export:
                writer = self.writer = self._open_writer(template, plan, export)

                def write(block: bytes, rows: int, last: bytes) -> None:
                    self._check()
                    writer.write(block, rows, last)
                    if max_rows is not None and writer.rows > max_rows:
                        raise errors.ResultTooLarge(f"more than {max_rows} rows")
                    if self._leaving or self.seconds_left() < self._hand_over_at:
                        self._out_of_time(export)

                export.run(write)
        except _HandOver:
            raise
        except Exception as error:
            # Of a query that was stopped on purpose, the purpose is the reason.
            self._check()
            if self._leaving and not isinstance(error, errors.PermanentFailure):
                raise _HandOver from None
            raise
        self._check()
        return writer.complete()

    def _open(
        self, template: templating.Template, params: pydantic.BaseModel, plan: plans.Plan | None
    ) -> exporting.Export:
        """The export, prepared, from its beginning or from where its last attempt left it."""
        checkpoint = self.job.checkpoint
        limits = [self.worker.settings.statement_timeout, template.statement_timeout]
        limits += [plan.statement_timeout] if plan else []
        # A statement that outlived this invocation would be nobody's.
        limits.append(dt.timedelta(seconds=max(1.0, self.seconds_left())))
        timeout = min(limit for limit in limits if limit is not None)
        begin: Callable[..., exporting.Export] = functools.partial(
            exporting.Export,
            self.worker.data,
            template,
            params,
            format=self.job.format,
            statement_timeout=timeout,
            kept=self.worker.kept,
        )
        if checkpoint is None:
            return self._prepared(begin())
        self.upload_token = uuid.UUID(checkpoint["upload_token"])
        self._lost_chains = checkpoint.get("lost_chains", 0)
        if (
            checkpoint.get("format") != _CHECKPOINT_FORMAT
            or checkpoint["template_version"] != template.version
        ):
            self._start_over("the template or the platform has changed meanwhile", counted=False)
            return self._prepared(begin())
        snapshot = checkpoint["snapshot"]
        try:
            export = self._prepared(
                begin(
                    snapshot=exporting.Snapshot(*snapshot) if snapshot else None,
                    after=exporting.Position(tuple(checkpoint["position"])),
                    as_of=dt.datetime.fromisoformat(checkpoint["as_of"]),
                )
            )
        except exporting.SnapshotLost:
            # Two snapshots are never stitched into one result.
            self._lost_chains += 1
            self._chain_lost = True
            self._start_over("the snapshot is lost")
            return self._prepared(begin())
        if _columns_of(export) != checkpoint["columns"] or (
            snapshot and export.query_digest != checkpoint["query"]
        ):
            export.close()
            self._start_over("the columns or the query have changed meanwhile")
            return self._prepared(begin())
        try:
            # Only now: until here its holder has kept the tables from being changed.
            with database.transaction(self.worker.engine) as conn:
                job_store.note_taken_over(conn, self.job.id, token=self.token)
        except BaseException:
            export.close()
            raise
        self._taken_over = True
        return export

    def _prepared(self, export: exporting.Export) -> exporting.Export:
        try:
            self.export = export
            self._check()
            self._check_age()
            export.prepare()
        except BaseException:
            export.close()
            raise
        return export

    def _start_over(self, reason: str, *, counted: bool = True) -> None:
        """`counted`: as it may be so each time, what comes of it is one of the few attempts."""
        logger.warning("starting over", reason=reason)
        with database.transaction(self.worker.engine) as conn:
            if not job_store.drop_checkpoint(conn, self.job.id, token=self.token):
                raise errors.LeaseLost
        self.job = dataclasses.replace(self.job, checkpoint=None)
        self.upload_token = self.token
        self._started_over = counted

    def _open_writer(
        self,
        template: templating.Template,
        plan: plans.Plan | None,
        export: exporting.Export,
    ) -> results.ResultWriter:
        resume = None
        if self.job.checkpoint is not None:
            resume = results.Checkpoint.from_json(self.job.checkpoint["upload"])
            self._resumed_parts = self._saved_parts = len(resume.parts)
        return results.ResultWriter(
            self.worker.bucket,
            jobs.result_key(self.job, self.token),
            content_type=self.job.format.content_type,
            compression=self.job.compression,
            part_bytes=self.worker.settings.part_bytes,
            largest_part=results.largest_part(self.worker.settings.memory_mb),
            max_bytes=_smallest(template.max_bytes, plan.max_bytes if plan else None),
            may_suspend=export.can_continue,
            resume=resume,
        )

    @property
    def _hand_over_at(self) -> float:
        return self.worker.settings.hand_over_before.total_seconds()

    def _out_of_time(self, export: exporting.Export) -> None:
        if export.can_continue:
            self._leave(export)
            raise _HandOver
        if self.seconds_left() < _STOP_SECONDS:
            raise self._too_late()

    def _leave(self, export: exporting.Export) -> None:
        with self._holding:
            if not self._leaving:
                # Now, while the session is alive whose snapshot is to be kept.
                self.holder = None if self._live else export.hold()
                self._leaving = True

    def _too_late(self) -> errors.ExecutionError:
        if self.writer is None or self._can_continue:
            return _OutOfTime()
        return errors.ExportTooLong(
            f"the invocation ended after {self.writer.rows} rows, and the export cannot be handed"
            " over"
        )

    def give_back(self) -> None:
        """From another thread: the job is due now, and is not this attempt's any more."""
        with database.transaction(self.worker.engine) as conn:
            given = job_store.requeue(
                conn,
                self.job.id,
                token=self.token,
                after=dt.timedelta(0),
                reason="worker stopped",
                counted=False,
                keep_checkpoint=self._has_checkpoint() and not self._is_complete,
            )
            if given:
                self._close_in(conn, "retry")
        if given:
            self._ring(dt.timedelta(0))
            self._interrupt(errors.LeaseLost())
            logger.warning("given back", job_id=str(self.job.id))

    def _hand_over(self) -> None:
        """Queues the job for another invocation and keeps its snapshot until that has taken it.

        Nothing is lost where nobody takes it in time: the next attempt then starts over.
        """
        assert self.writer is not None
        assert self.export is not None
        self._handing_over = True
        holder = self.holder
        try:
            snapshot = holder.share() if holder else None
            saved = self.writer.suspend(seconds=self._patience())
            if saved is None:
                self._discard()
            checkpoint = self._checkpoint(saved, snapshot)
            # Without a new part, or from the beginning again, there was no progress, and that may
            # not go on for ever.
            progress = (
                saved is not None
                and len(saved.parts) > self._resumed_parts
                and (not self._started_over or self._may_lose_a_chain)
            )
            faults.point("hand_over.before")
            self._stop_heartbeat()
            self._check()
            if (
                not progress
                and jobs.retry_delay(self.job.attempts, self.worker.jobs.retry_delays) is None
            ):
                raise errors.ExportTooLong(
                    f"no progress within one invocation; {self._lost_chains} times nobody took it"
                    " over"
                )
            self._handed_over = True
            queued = self._requeue(
                dt.timedelta(0),
                "handed over",
                outcome="handed_over" if saved else "retry",
                counted=not progress,
                checkpoint=checkpoint,
            )
            faults.point("hand_over.after")
            if queued and holder is not None and checkpoint is not None:
                self._wait_until_taken_over(checkpoint["generation"])
        except errors.CancelRequested:
            self._cancel()
        except errors.PermanentFailure as error:
            self._discard()
            self._fail(error.code, error.safe_message)
        except errors.LeaseLost:
            self._lose()
        except Exception as error:
            self._retry_or_fail(error)

    @property
    def _may_lose_a_chain(self) -> bool:
        """Whether this attempt started over only because nobody took the last one's snapshot."""
        return self._chain_lost and self._lost_chains <= _LOST_CHAINS

    def _patience(self) -> float:
        """Seconds that parts on their way may still take: at most half of what is left."""
        left = self.seconds_left()
        return max(0.0, min(left / 2, left - _WRITE_DOWN_SECONDS))

    def _checkpoint(
        self, saved: results.Checkpoint | None, snapshot: exporting.Snapshot | None
    ) -> dict[str, Any] | None:
        if saved is None or self.export is None:
            return None
        before = self.job.checkpoint or {}
        return {
            "format": _CHECKPOINT_FORMAT,
            "upload_token": str(self.upload_token),
            "template_version": self._template_version,
            "columns": _columns_of(self.export),
            "query": self.export.query_digest,
            "snapshot": list(snapshot) if snapshot else None,
            "position": (
                list(self.export.position(saved.last_row).values)
                if len(saved.parts) > self._resumed_parts
                else before["position"]
            ),
            "as_of": self.export.as_of.isoformat(),
            "generation": before.get("generation", 0) + 1,
            "lost_chains": self._lost_chains,
            "taken_over": False,
            "upload": saved.to_json(),
        }

    def _wait_until_taken_over(self, generation: int) -> None:
        pause = threading.Event()
        while self.seconds_left() > _LEAVE_SECONDS:
            try:
                with database.transaction(self.worker.engine, single=True) as conn:
                    if job_store.is_taken_over(conn, self.job.id, generation=generation):
                        return
            except Exception:
                # The snapshot is kept all the same: the next worker may be waiting as well.
                logger.warning("not known whether the snapshot was taken over", exc_info=True)
            pause.wait(_TAKEN_OVER_POLL_SECONDS)
        logger.warning("nobody took the snapshot over in time")
        with contextlib.suppress(Exception), database.transaction(self.worker.engine) as conn:
            job_store.postpone(
                conn, self.job.id, generation=generation, after=random.random() * _SPREAD
            )

    def _publish(self, template: templating.Template, stored: results.Stored) -> None:
        assert self.writer is not None
        assert self.export is not None
        faults.point("publish.before")
        self.worker.bucket.put_manifest(
            self.writer.key, _manifest(self.job, template, stored, self.export)
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
                as_of=self.export.as_of,
                consistency=template.consistency,
            )
            if published:
                if self.upload_token != self.token:
                    job_store.absorb_attempts(conn, self.job.id, upload_token=self.upload_token)
                database.commit_with_next(conn)
                self._close_in(conn, "published")
        faults.point("publish.after")
        if not published:
            if self._owns_job():
                raise errors.CancelRequested
            if not self._may_be_anothers_upload():
                self._erase()
            raise errors.LeaseLost
        logger.info("result published", rows=stored.rows, bytes=stored.bytes)

    def _beat(self) -> None:
        """Renews the lease beside the work, and stops the work when the job is lost or cancelled,
        or when the time is over. While the work is being stopped the job is still this attempt's.
        """
        pause = self.worker.jobs.heartbeat.total_seconds()
        while not self._ended.wait(pause):
            try:
                faults.point("heartbeat")
                self._watch_time()
                self._renew()
            except errors.ExecutionError as error:
                self._interrupt(error)
            except Exception:
                # The lease is longer than many heartbeats; one that fails is not the end.
                logger.warning("heartbeat failed", exc_info=True)
            if self.interrupted is not None or self._leaving:
                pause = min(pause, _INTERRUPT_AGAIN_SECONDS)
                # A query that was not yet there to be cancelled is cancelled when it is.
                if self.export is not None:
                    self.export.cancel()

    def _watch_time(self) -> None:
        """Work that writes nothing for long does not come to where it looks at the time itself."""
        left = self.seconds_left()
        if self._handing_over or self.export is None:
            return
        if self.interrupted is not None:
            if left < _WRITE_DOWN_SECONDS and not isinstance(self.interrupted, errors.LeaseLost):
                self._write_down(self.interrupted)
        elif left < _STOP_SECONDS:
            raise self._too_late()
        elif (
            left < self._hand_over_at / 2
            and self._can_continue
            and self.export.is_open
            and not self._leaving
        ):
            try:
                self._leave(self.export)
            except errors.ExecutionError:
                logger.warning("snapshot not kept", exc_info=True)

    def _write_down(self, reason: errors.ExecutionError) -> None:
        """The end of a job whose work goes on regardless, until Lambda kills it."""
        try:
            raise reason
        except errors.CancelRequested:
            self._end(jobs.JobStatus.CANCELLED, "cancelled by the client")
        except errors.PermanentFailure as error:
            self._fail(error.code, error.safe_message)
        except errors.ExecutionError:
            logger.warning("the dispatcher will find this job", exc_info=True)

    def _renew(self) -> None:
        checkpoint = self._live_checkpoint()
        with database.transaction(self.worker.engine, single=True) as conn:
            cancel = job_store.heartbeat(
                conn,
                self.job.id,
                token=self.token,
                lease=self.worker.jobs.lease,
                rows=self.writer.rows if self.writer else 0,
                bytes_=self.writer.bytes_in if self.writer else 0,
                estimate=self._estimate(),
                checkpoint=checkpoint,
            )
        if checkpoint is not None:
            self._saved_parts = len(checkpoint["upload"]["parts"])
            self._saved_at = time.monotonic()
        if cancel is None:
            raise errors.LeaseLost
        if cancel:
            raise errors.CancelRequested
        self._check_age()

    def _estimate(self) -> int | None:
        if self.export is None or self.export.rows_estimated is None:
            return None
        # The planner guesses what is left to do, which for a continued export is not all.
        before = self.job.checkpoint["upload"]["rows"] if self.job.checkpoint else 0
        return int(self.export.rows_estimated + before)

    def _live_checkpoint(self) -> dict[str, Any] | None:
        """Of a live export every part is a place to go on from, also after a crash."""
        if not self._live or not self._can_continue or self.writer is None:
            return None
        saved = self.writer.checkpoint()
        if saved is None or len(saved.parts) <= self._saved_parts:
            return None
        if time.monotonic() < self._saved_at + len(saved.parts) * _SAVE_PAUSE_A_PART:
            return None
        return self._checkpoint(saved, None)

    @property
    def _can_continue(self) -> bool:
        return self.writer is not None and self.export is not None and self.export.can_continue

    def _check_age(self) -> None:
        if self._max_age is None or self.export is None or not self.export.is_open:
            return
        if self.export.snapshot_age > self._max_age:
            raise errors.SnapshotTooOld(f"the snapshot was kept for longer than {self._max_age}")

    def _interrupt(self, reason: errors.ExecutionError) -> None:
        if self.interrupted is None or isinstance(reason, errors.LeaseLost):
            self.interrupted = reason
        if self.writer is not None:
            self.writer.stop(reason)

    def _check(self) -> None:
        if self.interrupted is not None:
            raise self.interrupted

    def _stop_heartbeat(self) -> None:
        self._ended.set()
        if self._heartbeat.is_alive() and threading.current_thread() is not self._heartbeat:
            self._heartbeat.join()

    def _discard(self, *, keep: bool = False) -> None:
        """Removes what this attempt wrote; what fails here is done by the dispatcher."""
        try:
            if self.writer is not None:
                if keep:
                    self.writer.suspend(seconds=0)
                else:
                    self.writer.abort()
            elif self.job.checkpoint is not None and not keep:
                upload = results.Checkpoint.from_json(self.job.checkpoint["upload"])
                self.worker.bucket.abort(upload.key, upload.upload_id)
        except Exception:
            logger.warning("upload not aborted", exc_info=True)

    def _cancel(self) -> None:
        self._discard()
        self._end(jobs.JobStatus.CANCELLED, "cancelled by the client")
        self._erase()

    def _lose(self) -> None:
        """The job is another attempt's, and so may be the upload: the dispatcher cleans up."""
        self._discard(keep=self._may_be_anothers_upload())
        self._close("worker_lost", "lease_lost", "another attempt owns the job")
        logger.warning("lease lost")

    def _may_be_anothers_upload(self) -> bool:
        return self._live or self._handed_over or self.upload_token != self.token

    def _owns_job(self) -> bool:
        with database.transaction(self.worker.engine) as conn:
            job = job_store.get(conn, self.job.id)
        return job is not None and job.attempt_token == self.token

    def _retry_or_fail(self, error: Exception) -> None:
        delay = jobs.retry_delay(self.job.attempts, self.worker.jobs.retry_delays)
        state = database.sqlstate(error)
        # Of its own database the platform has made ServiceUnavailable; this is the adopter's, where
        # a write was refused because a template may only read.
        permanent = state == "25006" or (state is not None and not database.is_transient(error))
        if delay is None or permanent:
            self._discard(keep=self._handed_over)
            if isinstance(error, _OutOfTime):
                self._fail(errors.ExportTooLong.code, errors.ExportTooLong.safe_message)
            else:
                code = "database_error" if state else "internal_error"
                self._fail(code, "The report could not be made.")
            return
        logger.warning("attempt failed, will be tried again", exc_info=True)
        # A live export goes on at its last part, and what was not yet taken over where it was left;
        # everything else starts over.
        resumes = not self._is_complete and not results.upload_is_lost(error)
        checkpoint = self._suspended() if resumes and self._live and self._can_continue else None
        keep = resumes and checkpoint is None and self._has_checkpoint()
        # Where it is not known whether the job was queued, the upload may be another's by now.
        self._discard(keep=self._handed_over or keep or checkpoint is not None)
        self._requeue(
            delay,
            f"retry after {type(error).__name__}",
            outcome="retry",
            code="transient_error",
            counted=True,
            checkpoint=checkpoint,
            keep_checkpoint=keep,
        )

    @property
    def _is_complete(self) -> bool:
        return self.writer is not None and self.writer.is_complete

    def _has_checkpoint(self) -> bool:
        """Whether the checkpoint in the job's row is one to go on from."""
        if self._live:
            return self.job.checkpoint is not None or self._saved_parts > 0
        return self.job.checkpoint is not None and not self._taken_over

    def _erase(self) -> None:
        """Removes an object that was whole already but is not published; otherwise as above."""
        prefix = jobs.attempt_prefix(self.job.client_id, self.job.id, self.upload_token)
        try:
            self.worker.bucket.erase_attempt(prefix)
        except Exception:
            logger.warning("attempt not erased", exc_info=True)

    def _suspended(self) -> dict[str, Any] | None:
        if self.writer is None:
            return None
        try:
            return self._checkpoint(self.writer.suspend(seconds=self._patience()), None)
        except Exception:
            logger.warning("upload not suspended", exc_info=True)
            return None

    def _requeue(
        self,
        after: dt.timedelta,
        reason: str,
        *,
        outcome: str,
        counted: bool,
        code: str | None = None,
        checkpoint: dict[str, Any] | None = None,
        keep_checkpoint: bool = False,
    ) -> bool:
        with database.transaction(self.worker.engine) as conn:
            queued = job_store.requeue(
                conn,
                self.job.id,
                token=self.token,
                after=after,
                reason=reason,
                counted=counted,
                checkpoint=checkpoint,
                keep_checkpoint=keep_checkpoint,
            )
            if queued:
                self._close_in(conn, outcome, code)
        if queued:
            self._ring(after)
        elif self._owns_job():
            # It was cancelled meanwhile.
            self._cancel()
        else:
            self._lose()
        return queued

    def _ring(self, after: dt.timedelta) -> None:
        try:
            self.worker.queue.ring(self.job.id, after=after.total_seconds())
        except Exception:
            # The dispatcher rings for every job that nobody started.
            logger.warning("doorbell not rung", exc_info=True)

    def _fail(self, code: str, safe_message: str) -> None:
        logger.exception("job failed", code=code)
        self._end(jobs.JobStatus.FAILED, code, code, safe_message)

    def _end(
        self,
        status: jobs.JobStatus,
        reason: str,
        code: str | None = None,
        safe_message: str | None = None,
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
            self._close_in(conn, str(status) if ended else "worker_lost", code)

    def _close(self, outcome: str, code: str | None, detail: str | None) -> None:
        with database.transaction(self.worker.engine) as conn:
            self._close_in(conn, outcome, code, detail)

    def _close_in(
        self,
        conn: sa.Connection,
        outcome: str,
        code: str | None = None,
        detail: str | None = None,
    ) -> None:
        job_store.close_attempt(
            conn,
            self.token,
            outcome=outcome,
            rows=self.writer.rows if self.writer else 0,
            bytes_=self.writer.bytes_in if self.writer else 0,
            as_of=self.export.as_of if self.export else None,
            error_code=code,
            error_detail=detail or (traceback.format_exc() if code else None),
        )


def _columns_of(export: exporting.Export) -> list[list[str]]:
    return [[column.name, column.type] for column in export.columns]


def _smallest(*limits: int | None) -> int | None:
    return min((limit for limit in limits if limit is not None), default=None)


def _manifest(
    job: jobs.Job,
    template: templating.Template,
    stored: results.Stored,
    export: exporting.Export,
) -> dict[str, Any]:
    return {
        "manifest_version": 1,
        "job_id": str(job.id),
        "template": {"name": template.name, "version": template.version},
        "parameters": job.parameters,
        "as_of": export.as_of.isoformat(),
        "consistency": template.consistency,
        "order": list(template.order),
        "format": job.format.value,
        "compression": job.compression.value,
        "columns": [dataclasses.asdict(column) for column in export.columns],
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

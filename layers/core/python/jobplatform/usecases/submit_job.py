"""Accepting a job: one row, then a doorbell."""

import datetime as dt
from collections.abc import Mapping
from typing import Any

import pydantic
import sqlalchemy as sa

from jobplatform import errors, faults, idempotency, job_store, jobs, plans, templating
from jobplatform.client_store import Caller
from jobplatform.observability import logger
from jobplatform.queue import Queue
from jobplatform.settings import JobSettings


def submit_job(
    *,
    caller: Caller,
    template_name: str,
    parameters: Mapping[str, Any],
    metadata: Mapping[str, Any],
    run_at: dt.datetime | None,
    format: jobs.ResultFormat,
    compression: jobs.Compression,
    idempotency_key: str | None,
    engine: sa.Engine,
    queue: Queue,
    settings: JobSettings,
    now: dt.datetime,
    lambda_context: Any,
) -> tuple[jobs.Job, bool]:
    """The job and whether it is a replay. One client and one key make one job.

    The row is committed before the doorbell rings; a crash between the two is healed by the
    dispatcher. Raises `errors.InvalidRequest`, `IdempotencyKeyReused`, `SubmitInProgress`,
    `TooManyQueuedJobs`, `UnknownClient`, `ServiceUnavailable`.
    """
    plan = plans.PLANS[caller.plan]
    version, checked, refusal = "", dict(parameters), None
    try:
        version, checked = _checked(template_name, parameters)
        _check_run_at(run_at, now, settings)
    except errors.InvalidRequest as error:
        # What was accepted under this key stays so, though its run_at has passed by now.
        if idempotency_key is None:
            raise
        refusal = error
    new = job_store.NewJob(
        id=jobs.new_id(),
        client_id=caller.client_id,
        plan=plan.name,
        template_name=template_name,
        template_version=version,
        parameters=checked,
        metadata=dict(metadata),
        format=format,
        compression=compression,
        run_at=run_at,
        max_attempts=len(settings.retry_delays) + 1,
        idempotency_key=idempotency_key,
        idempotency_ttl=settings.idempotency_ttl,
    )
    request = {
        "template_name": template_name,
        "parameters": dict(parameters),
        "metadata": dict(metadata),
        "run_at": run_at.isoformat() if run_at else None,
        "format": format.value,
        "compression": compression.value,
    }

    def ring(job: jobs.Job) -> None:
        faults.point("submit.after_commit")
        wait = (job.available_at - job.created_at).total_seconds()
        if wait > settings.ring_ahead.total_seconds():
            return  # the dispatcher rings when its time comes
        try:
            queue.ring(job.id, after=wait)
        except Exception:
            # The 202 holds: the dispatcher rings for every job that nobody started.
            logger.exception("doorbell not rung", job_id=str(job.id))
        faults.point("submit.after_doorbell")

    job, replayed = idempotency.submit_once(
        new,
        request=request,
        max_queued=plan.max_queued,
        engine=engine,
        accepted=ring,
        refusal=refusal,
        lambda_context=lambda_context,
    )
    logger.info(
        "job submitted",
        job_id=str(job.id),
        client_id=str(job.client_id),
        template=job.template_name,
        replayed=replayed,
    )
    return job, replayed


def _checked(template_name: str, parameters: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The template's version and the parameters as they are stored."""
    try:
        template = templating.get(template_name)
    except errors.TemplateNotFound as error:
        raise errors.InvalidRequest(
            errors=[
                {
                    "loc": ["body", "template_name"],
                    "msg": error.message,
                    "type": errors.TemplateNotFound.code,
                }
            ]
        ) from error
    try:
        checked = template.parse(parameters)
    except pydantic.ValidationError as error:
        raise errors.InvalidRequest(
            errors=[
                {
                    "loc": ["body", "parameters", *detail["loc"]],
                    "msg": detail["msg"],
                    "type": detail["type"],
                }
                for detail in error.errors(include_url=False, include_context=False)
            ]
        ) from error
    return template.version, checked.model_dump(mode="json", exclude_unset=True)


def _check_run_at(run_at: dt.datetime | None, now: dt.datetime, settings: JobSettings) -> None:
    if run_at is None:
        return
    if run_at < now - settings.run_at_grace:
        problem = "run_at is in the past"
    elif run_at > now + settings.run_at_horizon:
        problem = f"run_at is more than {settings.run_at_horizon.days} days ahead"
    else:
        return
    raise errors.InvalidRequest(
        errors=[{"loc": ["body", "run_at"], "msg": problem, "type": "run_at_out_of_range"}]
    )

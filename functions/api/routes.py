"""The HTTP surface: one function a route."""

import datetime as dt
import json
import uuid
from http import HTTPStatus
from typing import Annotated, Any

from aws_lambda_powertools.event_handler import Response
from aws_lambda_powertools.event_handler.openapi.params import Header, Path, Query
from aws_lambda_powertools.event_handler.router import APIGatewayRouter

from functions.api import requests, resources, views
from functions.api.views import answers
from jobplatform import client_store, database, errors, jobs, templating
from jobplatform.usecases import cancel_job, download_result, list_jobs, submit_job

router = APIGatewayRouter()

MAX_WAIT_SECONDS = 20
_JSON = "application/json"

JobId = Annotated[str, Path(description="The job's id.")]


@router.post(
    "/jobs",
    summary="Submit a job",
    operation_id="submit_job",
    tags=["jobs"],
    status_code=202,
    responses=answers(
        views.JobView,
        *(202, 400, 403, 409, 413, 415, 422),
        headers={202: ["Location", "Retry-After", "Idempotent-Replayed"]},
    ),
)
def submit(
    request: views.SubmitJobRequest,
    idempotency_key: Annotated[
        str | None,
        Header(
            alias="Idempotency-Key",
            description="1 to 255 printable ASCII characters. The same key and body give the"
            " same job for 24 hours.",
        ),
    ] = None,
) -> Response[views.JobView]:
    """Answers at once; the job is done later.

    A replay shows the job as it is now and says `Idempotent-Replayed: true`.
    """
    got = resources.get()
    job, replayed = submit_job.submit_job(
        caller=_caller(),
        template_name=request.template_name,
        parameters=request.parameters,
        metadata=request.metadata,
        run_at=request.run_at,
        format=request.format,
        compression=request.compression,
        idempotency_key=idempotency_key,
        engine=got.engine,
        queue=got.queue,
        settings=got.jobs,
        now=_now(),
        lambda_context=router.lambda_context,
    )
    # Relative to the request, so that it is right behind every stage and domain.
    folder = "" if router.current_event.path.endswith("/") else "jobs/"
    headers = {"Location": f"{folder}{job.id}", "Retry-After": str(_retry_after(job))}
    if replayed:
        headers["Idempotent-Replayed"] = "true"
    return Response(HTTPStatus.ACCEPTED, _JSON, views.JobView.of(job), headers=headers)


@router.get(
    "/jobs",
    summary="List jobs",
    operation_id="list_jobs",
    tags=["jobs"],
    responses=answers(views.JobPage, 200, 400, 403, 422),
)
def list_(
    status: Annotated[jobs.JobStatus | None, Query(description="Only those in this state.")] = None,
    template_name: Annotated[
        str | None, Query(max_length=100, description="Only those of this template.")
    ] = None,
    created_after: Annotated[
        views.Moment | None, Query(description="Only those made after this time (RFC 3339).")
    ] = None,
    created_before: Annotated[
        views.Moment | None, Query(description="Only those made before this time (RFC 3339).")
    ] = None,
    limit: Annotated[
        int, Query(ge=1, le=200, description="Jobs of a page at the most; of large ones, fewer.")
    ] = 50,
    cursor: Annotated[
        str | None,
        Query(max_length=1000, description="`next_cursor` of the page before, same filters."),
    ] = None,
) -> Response[views.JobPage]:
    """The client's own jobs, newest first."""
    _check_query()
    caller = _caller()
    page, next_cursor = list_jobs.list_jobs(
        list_jobs.Filters(
            status=status,
            template_name=template_name,
            created_after=created_after,
            created_before=created_before,
        ),
        client_id=caller.client_id,
        cursor=cursor,
        limit=limit,
        secret=resources.cursor_secret(),
        engine=resources.get().engine,
    )
    items = [views.JobView.of(job) for job in page]
    return Response(HTTPStatus.OK, _JSON, views.JobPage(items=items, next_cursor=next_cursor))


@router.get(
    "/jobs/<job_id>",
    summary="Look at a job",
    operation_id="get_job",
    tags=["jobs"],
    responses=answers(views.JobView, 200, 403, 404, 422, headers={200: ["Retry-After"]}),
)
def show(
    job_id: JobId,
    wait: Annotated[
        int,
        Query(ge=0, le=MAX_WAIT_SECONDS, description="Seconds to wait for the job's end."),
    ] = 0,
) -> Response[views.JobView]:
    """The job as it is, at once or when it has ended."""
    _check_query()
    got = resources.get()
    job = list_jobs.get_job(
        _job_id(job_id),
        caller=_caller(),
        engine=got.engine,
        wait=wait,
        max_waits=got.api.max_waits,
    )
    headers = {} if job.is_final else {"Retry-After": str(_retry_after(job))}
    return Response(HTTPStatus.OK, _JSON, views.JobView.of(job), headers=headers)


@router.get(
    "/jobs/<job_id>/download",
    summary="Download a result",
    operation_id="download_result",
    tags=["jobs"],
    responses=answers(
        views.DownloadView,
        *(200, 303, 403, 404, 409, 410, 422),
        headers={303: ["Location"]},
    ),
)
def download(
    job_id: JobId,
    redirect: Annotated[
        bool, Query(description="false: the URL as JSON instead of a redirect to it.")
    ] = True,
) -> Response[views.DownloadView]:
    """Leads to a URL that is good for a short time; ask again for another."""
    _check_query()
    got = resources.get()
    found = download_result.download_result(
        _job_id(job_id),
        client_id=_caller().client_id,
        engine=got.engine,
        bucket=got.bucket,
        url_ttl=got.results.url_ttl,
        now=_now(),
    )
    view = views.DownloadView(
        url=found.url,
        manifest_url=found.manifest_url,
        expires_at=found.expires_at,
        filename=found.filename,
        content_type=found.content_type,
        bytes=found.bytes,
        sha256=found.sha256,
    )
    # The URL is a secret for as long as it works.
    headers = {"Cache-Control": "no-store"}
    if redirect:
        headers["Location"] = found.url
        return Response(HTTPStatus.SEE_OTHER, _JSON, view, headers=headers)
    return Response(HTTPStatus.OK, _JSON, view, headers=headers)


@router.post(
    "/jobs/<job_id>/cancel",
    summary="Cancel a job",
    operation_id="cancel_job",
    tags=["jobs"],
    status_code=202,
    responses=answers(views.JobView, 202, 403, 404, 409, headers={202: ["Location"]}),
)
def cancel(job_id: JobId) -> Response[views.JobView]:
    """A queued job ends at once, a running one within seconds."""
    got = resources.get()
    job = cancel_job.cancel_job(
        _job_id(job_id), client_id=_caller().client_id, engine=got.engine, settings=got.jobs
    )
    return Response(
        HTTPStatus.ACCEPTED, _JSON, views.JobView.of(job), headers={"Location": f"../{job.id}"}
    )


@router.get(
    "/templates",
    summary="List templates",
    operation_id="list_templates",
    tags=["templates"],
    responses=answers(views.TemplateList, 200, 403),
)
def templates() -> Response[views.TemplateList]:
    """Every report that can be asked for."""
    _caller()
    items = [views.TemplateView.of(template) for template in templating.catalogue().values()]
    return Response(HTTPStatus.OK, _JSON, views.TemplateList(items=items))


@router.get(
    "/templates/<name>",
    summary="Look at a template",
    operation_id="get_template",
    tags=["templates"],
    responses=answers(views.TemplateView, 200, 403, 404),
)
def template(
    name: Annotated[str, Path(description="The template's name.")],
) -> Response[views.TemplateView]:
    """One report, with the JSON Schema of its parameters."""
    _caller()
    return Response(HTTPStatus.OK, _JSON, views.TemplateView.of(templating.get(name)))


@router.get(
    "/health",
    summary="Whether the API works",
    operation_id="get_health",
    tags=["service"],
    responses=views.health_answers(),
)
def health() -> Response[views.Health]:
    """Needs no key. Checks the database with one query."""
    got = resources.get()
    try:
        with database.transaction(got.engine) as conn:
            conn.exec_driver_sql("SELECT 1")
        status, check = HTTPStatus.OK, "ok"
    except errors.ServiceUnavailable:
        status, check = HTTPStatus.SERVICE_UNAVAILABLE, "unreachable"
    view = views.Health(
        status="ok" if status is HTTPStatus.OK else "unavailable",
        version=got.api.version,
        checks={"database": check},
    )
    return Response(status, _JSON, view, headers={"Cache-Control": "no-store"})


def to_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _caller() -> client_store.Caller:
    keys = requests.header_values(router.current_event.raw_event, "x-api-key")
    return resources.caller(keys[0] if len(keys) == 1 else None)


def _job_id(text: str) -> uuid.UUID:
    try:
        found = uuid.UUID(text)
    except ValueError as error:
        raise errors.JobNotFound from error
    # UUID() reads more spellings than one, and a job has one address.
    if str(found) != text.lower():
        raise errors.JobNotFound
    return found


def _check_query() -> None:
    """Powertools passes over parameters that a route does not know."""
    known = {param.alias for param in router.context["_route"].dependant.query_params}
    found = requests.query_errors(router.current_event.raw_event, known)
    if found:
        raise errors.InvalidRequest(errors=found)


def _retry_after(job: jobs.Job) -> int:
    """Seconds after which another look is worth it; not before a scheduled job is due."""
    return max(1, min(60, int((job.available_at - _now()).total_seconds()) + 1))


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)

"""The client of the REST API: one method per call, with the retries that are safe."""

import builtins
import contextlib
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import quote

import httpx
import pydantic

from jobclient import downloads, errors, models, retries

# A long poll may take 29 s, the limit of API Gateway.
DEFAULT_TIMEOUT = 35.0

_Model = TypeVar("_Model", bound=pydantic.BaseModel)


class Client:
    """A client of one deployed platform. Close it, or use it in a `with` block.

    Calls raise the errors of `jobclient.errors` (and `ValueError` for arguments that cannot be
    right). Requests are tried again when the connection fails and on 429, 502, 503 and 504, within
    the bounds of `retry`; a submit repeats its Idempotency-Key, so that it makes one job however
    often it is sent.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        retry: retries.Retry | None = None,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        url = base_url.strip().rstrip("/")
        if not url.startswith(("http://", "https://")):
            raise ValueError(
                f"The URL of the API must begin with https:// or http://: {base_url!r}"
            )
        key = api_key.strip()
        if not key or not key.isascii() or not key.isprintable():
            raise ValueError("The API key is empty or has characters that no key has")
        self.base_url = url
        self._key_header = {"x-api-key": key}
        self._retry = retry or retries.Retry()
        self._sleep = sleep
        self._clock = clock
        # Redirects are not followed, and the key is not a default header: it must not reach S3.
        self._http = httpx.Client(timeout=timeout, transport=transport, follow_redirects=False)

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # Jobs

    def submit(
        self,
        template_name: str,
        parameters: Mapping[str, Any] | None = None,
        *,
        run_at: datetime | None = None,
        metadata: Mapping[str, Any] | None = None,
        format: str | None = None,
        compression: str | None = None,
        idempotency_key: str | None = None,
    ) -> models.SubmittedJob:
        """Submits a job, under a fresh Idempotency-Key unless one is given.

        Give a key of your own, kept somewhere, where the process itself may die and repeat the
        submit; the platform remembers it for 24 hours.
        """
        if run_at is not None and run_at.tzinfo is None:
            raise ValueError("run_at needs a time zone")
        body: dict[str, Any] = {"template_name": template_name, "parameters": parameters or {}}
        optional = {
            "run_at": run_at.isoformat() if run_at else None,
            "metadata": metadata,
            "format": format,
            "compression": compression,
        }
        body |= {name: value for name, value in optional.items() if value is not None}
        key = idempotency_key if idempotency_key is not None else str(uuid.uuid4())
        if not key.isascii() or not key.isprintable():
            raise ValueError("An Idempotency-Key has printable ASCII characters only")
        response = self._request(
            "POST", "/jobs", json=body, headers={"Idempotency-Key": key}, retry_conflict=True
        )
        replayed = response.headers.get("idempotent-replayed", "").lower() == "true"
        return _read(
            models.SubmittedJob, response, also={"idempotency_key": key, "replayed": replayed}
        )

    def get(self, job_id: str) -> models.Job:
        """The job as it is now."""
        return _read(models.Job, self._request("GET", f"/jobs/{_segment(job_id)}"))

    def wait(
        self,
        job_id: str,
        *,
        timeout: float | None = None,
        poll: float = 20.0,
        on_update: Callable[[models.Job], None] = lambda job: None,
    ) -> models.Job:
        """Waits until the job is final and returns it, failed or not (see `Job.raise_for_status`).

        Asks the platform to hold its answer for up to `poll` seconds (at most 20), and where it
        does not, asks again after its Retry-After or in growing intervals. `on_update` gets each
        answer. Raises `DeadlineExceeded` after `timeout` seconds; the job goes on.
        """
        deadline = None if timeout is None else self._clock() + timeout
        long_poll = True
        pause = 0.5
        while True:
            asked_at = self._clock()
            hold = min(poll, 20.0)
            if deadline is not None:
                hold = min(hold, max(0.0, deadline - asked_at))
            params = {"wait": str(int(hold))} if long_poll and hold >= 1 else {}
            try:
                response = self._request("GET", f"/jobs/{_segment(job_id)}", params=params)
            except (errors.BadRequest, errors.Unprocessable):
                if not params:
                    raise
                long_poll = False  # a platform that does not know `wait`
                continue
            job = _read(models.Job, response)
            on_update(job)
            if job.is_final:
                return job
            now = self._clock()
            if deadline is not None and now >= deadline:
                raise errors.DeadlineExceeded(job, timeout or 0.0)
            asked_to_wait = retries.retry_after(response)
            interval = pause if asked_to_wait is None else asked_to_wait
            pause = min(pause * 1.5, 5.0)
            # An answer that was held has been waited for already.
            rest = asked_at + min(interval, self._retry.max_retry_after) - now
            if deadline is not None:
                rest = min(rest, deadline - now)
            if rest > 0:
                self._sleep(rest)

    def list(
        self,
        *,
        status: str | None = None,
        template_name: str | None = None,
        created_after: datetime | None = None,
        created_before: datetime | None = None,
        page_size: int = 100,
    ) -> Iterator[models.Job]:
        """The client's own jobs, newest first, page by page as they are iterated over."""
        params = {"limit": str(page_size)}
        for name, value in (("status", status), ("template_name", template_name)):
            if value is not None:
                params[name] = value
        for name, moment in (("created_after", created_after), ("created_before", created_before)):
            if moment is not None:
                if moment.tzinfo is None:
                    raise ValueError(f"{name} needs a time zone")
                params[name] = moment.isoformat()
        return self._pages(params)

    def _pages(self, params: Mapping[str, str]) -> Iterator[models.Job]:
        cursor: str | None = None
        while True:
            asked = {**params, "cursor": cursor} if cursor else params
            page = _read(models.JobPage, self._request("GET", "/jobs", params=asked))
            yield from page.items
            if not page.next_cursor:
                return
            if page.next_cursor == cursor:
                raise errors.UnexpectedAnswer(
                    "The list of jobs does not advance: same cursor twice"
                )
            cursor = page.next_cursor

    def cancel(self, job_id: str) -> models.Job:
        """Asks the platform to cancel the job; it is `cancelled` within seconds, if not at once."""
        return _read(models.Job, self._request("POST", f"/jobs/{_segment(job_id)}/cancel"))

    # Results

    def ticket(self, job_id: str) -> models.Ticket:
        """A fresh presigned URL for the result."""
        response = self._request(
            "GET", f"/jobs/{_segment(job_id)}/download", params={"redirect": "false"}
        )
        return _read(models.Ticket, response)

    def download(
        self,
        job_id: str,
        path: Path | str,
        *,
        on_progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> downloads.Download:
        """Downloads the result to a file, or into a folder under the name that the platform gives.

        The bytes go to `<name>.part` first, which becomes the file only when its size and SHA-256
        are right. A connection that breaks, a URL that expires or a call that was killed continue
        where they ended. `on_progress` gets the bytes so far and in all. Raises `JobFailed` for a
        job that has no result, `Conflict` for one that is not ready, `Gone` for one that expired.
        """
        try:
            return downloads.download(
                lambda: self.ticket(job_id),
                Path(path),
                http=self._http,
                retry=self._retry,
                sleep=self._sleep,
                on_progress=on_progress,
            )
        except errors.Conflict:
            self.get(job_id).raise_for_status()
            raise

    def download_manifest(self, job_id: str, path: Path | str) -> None:
        """Saves the manifest of the result to a file, for `manifests.verify`.

        Raises as `download` does, and `UnexpectedAnswer` where the platform hands out no manifests.
        """
        downloads.download_manifest(
            lambda: self.ticket(job_id),
            Path(path),
            http=self._http,
            retry=self._retry,
            sleep=self._sleep,
        )

    # The catalogue and the platform

    def templates(self) -> builtins.list[models.Template]:
        """What can be asked for."""
        return [*_read(models.TemplateList, self._request("GET", "/templates")).items]

    def template(self, name: str) -> models.Template:
        return _read(models.Template, self._request("GET", f"/templates/{_segment(name)}"))

    def health(self) -> models.Health:
        """What the platform says of itself, ill or well; not retried."""
        response = self._send("GET", "/health")
        with contextlib.suppress(errors.UnexpectedAnswer):
            return _read(models.Health, response)
        raise _problem(response)

    # Requests

    def _request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        json: object = None,
        headers: Mapping[str, str] | None = None,
        retry_conflict: bool = False,
    ) -> httpx.Response:
        """Sends until there is an answer that counts, and raises `ApiError` if it is a problem."""
        failures = 0
        while True:
            try:
                response = self._send(method, path, params=params, json=json, headers=headers)
            except errors.TransportError as error:
                failures += 1
                if failures >= self._retry.attempts or not _is_passing(error.__cause__):
                    raise
                self._sleep(self._retry.backoff(failures))
                continue
            if response.is_success:
                return response
            failures += 1
            problem = _problem(response)
            again = response.status_code in (429, 502, 503, 504) or (
                # The first request with this key still runs: its job is a moment away.
                retry_conflict and response.status_code == 409
            )
            delay = problem.retry_after
            if delay is None:
                delay = self._retry.backoff(failures)
            if (
                not again
                or failures >= self._retry.attempts
                or problem.code == "quota_exceeded"
                or delay > self._retry.max_retry_after
            ):
                raise problem
            self._sleep(delay)

    def _send(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        json: object = None,
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        try:
            return self._http.request(
                method,
                f"{self.base_url}{path}",
                params=params,
                json=json,
                headers={**self._key_header, "Accept": "application/json", **(headers or {})},
            )
        except (httpx.RequestError, httpx.InvalidURL) as error:
            raise errors.TransportError(
                f"{self.base_url} cannot be reached: {error or type(error).__name__}"
            ) from error


def _is_passing(error: BaseException | None) -> bool:
    """Whether the failure can pass by itself, other than a URL or header that is wrong."""
    return isinstance(error, httpx.TransportError) and not isinstance(
        error, httpx.UnsupportedProtocol | httpx.LocalProtocolError
    )


def _segment(value: str) -> str:
    """A value as one segment of a path."""
    if not value.strip("."):
        raise ValueError(f"Not an id or a name: {value!r}")
    return quote(value, safe="")


def _problem(response: httpx.Response) -> errors.ApiError:
    try:
        body = response.json()
    except ValueError:
        body = None
    problem = errors.Problem.from_answer(response.status_code, body, reason=response.reason_phrase)
    return errors.api_error(problem, retry_after=retries.retry_after(response))


def _read(
    model: type[_Model], response: httpx.Response, *, also: Mapping[str, Any] | None = None
) -> _Model:
    try:
        body = response.json()
        if not isinstance(body, dict):
            raise ValueError("not an object")
        return model.model_validate({**body, **(also or {})})
    except ValueError as error:  # pydantic's included
        raise errors.UnexpectedAnswer(
            f"{response.request.method} {response.request.url.copy_with(query=None)} answered "
            f"HTTP {response.status_code} with something that is no {model.__name__}: is this the "
            "URL of an Async Job Platform?"
        ) from error

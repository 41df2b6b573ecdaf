"""Fetches a result into a file: resumed where it broke off, checked before it gets its name."""

import dataclasses
import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx
import pydantic

from jobclient import errors, models, retries

_BLOCK = 1024 * 1024


@dataclasses.dataclass(frozen=True, kw_only=True)
class Download:
    """A file that holds the whole result."""

    path: Path
    bytes: int
    sha256: str
    resumed_from: int
    """Bytes of it that an earlier call had left in the `.part` file; 0: none."""


def download(
    mint: Callable[[], models.Ticket],
    path: Path,
    *,
    http: httpx.Client,
    retry: retries.Retry,
    sleep: Callable[[float], None],
    on_progress: Callable[[int, int], None],
) -> Download:
    """Downloads what `mint`'s presigned URLs point to; mints a new one when S3 refuses the old.

    Raises `ChecksumMismatch` after removing the file, and `TransportError` or `StorageRefused` when
    the tries without progress run out; the `.part` file stays then, and the next call goes on with
    it.
    """
    ticket = mint()
    if path.is_dir():
        path = path / _file_name(ticket.filename)
    part = path.with_name(path.name + ".part")
    try:
        with _PartFile(part) as file:
            fetch = _Fetch(mint, ticket, file, http=http, retry=retry, sleep=sleep)
            fetch.run(on_progress)
            if file.found and file.sha256 != fetch.ticket.sha256:
                # What was there belongs to another result: once more, without it.
                file.restart()
                fetch.run(on_progress)
            if (file.size, file.sha256) != (fetch.ticket.bytes, fetch.ticket.sha256):
                raise _Mismatch(f"{file.size} bytes with SHA-256 {file.sha256}")
            file.sync()
    except _Mismatch as mismatch:
        part.unlink(missing_ok=True)
        raise errors.ChecksumMismatch(
            f"The download of {path.name} is not what the platform stored: {mismatch} instead of "
            f"{fetch.ticket.bytes} bytes with {fetch.ticket.sha256}. The file has been removed; "
            "try again, and tell the operator if it happens twice."
        ) from None
    os.replace(part, path)
    return Download(path=path, bytes=file.size, sha256=file.sha256, resumed_from=file.found)


def download_manifest(
    mint: Callable[[], models.Ticket],
    path: Path,
    *,
    http: httpx.Client,
    retry: retries.Retry,
    sleep: Callable[[float], None],
) -> None:
    """Saves the manifest that `mint`'s presigned URLs point to, as it is stored.

    Raises `UnexpectedAnswer` where there is none, `ChecksumMismatch` where it is another result's,
    and `TransportError` or `StorageRefused` when the tries run out.
    """
    for failures in range(1, retry.attempts + 1):
        ticket = mint()
        if ticket.manifest_url is None:
            raise errors.UnexpectedAnswer("This platform does not hand out manifests")
        try:
            response = http.get(ticket.manifest_url, follow_redirects=True)
            if response.status_code != 200:
                raise _storage_refused(response.status_code, response.text, response.reason_phrase)
            break
        except (httpx.RequestError, httpx.InvalidURL) as error:
            failure: errors.JobClientError = errors.TransportError(
                f"The download broke off: {error or type(error).__name__}"
            )
            failure.__cause__ = error
        except errors.StorageRefused as error:
            failure = error
        if failures == retry.attempts:
            raise failure
        sleep(retry.backoff(failures))
    try:
        stated = models.Manifest.model_validate_json(response.content)
    except pydantic.ValidationError as error:
        raise errors.UnexpectedAnswer("S3 holds no manifest of a result under its URL") from error
    if (stated.bytes, stated.sha256) != (ticket.bytes, ticket.sha256):
        raise errors.ChecksumMismatch(
            f"The manifest is of another file than the result: {stated.bytes} bytes with SHA-256 "
            f"{stated.sha256} instead of {ticket.bytes} bytes with {ticket.sha256}. Tell the "
            "operator."
        )
    part = path.with_name(path.name + ".part")
    part.write_bytes(response.content)
    os.replace(part, path)


class _Mismatch(Exception):
    """S3 has other bytes than the platform states; says which."""


class _PartFile:
    """The bytes so far and their SHA-256, those of an earlier call included."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._hash = hashlib.sha256()
        self.size = 0
        self.found = 0
        """Bytes that were there at the start and still count."""

    def __enter__(self) -> Self:
        # Not the mode "a": a restart has to write from the beginning again.
        self._file = open(self._path, "r+b" if self._path.exists() else "w+b")
        while block := self._file.read(_BLOCK):
            self._hash.update(block)
            self.size += len(block)
        self.found = self.size
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()
        if error is not None and self.size == 0:
            self._path.unlink()  # nothing to go on with

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    def append(self, block: bytes) -> None:
        self._file.write(block)
        self._hash.update(block)
        self.size += len(block)

    def restart(self) -> None:
        self._file.seek(0)
        self._file.truncate()
        self._hash = hashlib.sha256()
        self.size = self.found = 0

    def sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())


class _Fetch:
    """Fills the file from S3, over as many requests and URLs as it takes."""

    def __init__(
        self,
        mint: Callable[[], models.Ticket],
        ticket: models.Ticket,
        file: _PartFile,
        *,
        http: httpx.Client,
        retry: retries.Retry,
        sleep: Callable[[float], None],
    ) -> None:
        self.ticket = ticket
        self._mint = mint
        self._file = file
        self._http = http
        self._retry = retry
        self._sleep = sleep
        self._etag: str | None = None

    def run(self, on_progress: Callable[[int, int], None]) -> None:
        """Requests the rest until the file has its size, or more than that (then it is wrong)."""
        if self._file.size > self.ticket.bytes:
            self._file.restart()
        failures = 0
        furthest = self._file.size
        while self._file.size < self.ticket.bytes:
            failure: errors.JobClientError
            try:
                self._request(on_progress)
                failure = errors.TransportError("The connection to S3 ended before the file did")
            except (httpx.RequestError, httpx.InvalidURL) as error:
                failure = errors.TransportError(
                    f"The download broke off: {error or type(error).__name__}"
                )
                failure.__cause__ = error
            except errors.StorageRefused as error:
                failure = error
            if self._file.size >= self.ticket.bytes:
                return
            # Bytes that had been there before a restart are no progress.
            failures = 1 if self._file.size > furthest else failures + 1
            furthest = max(furthest, self._file.size)
            if failures >= self._retry.attempts:
                raise failure
            if isinstance(failure, errors.StorageRefused) and failure.status < 500:
                self._renew()
                if failures == 1:
                    continue  # the URL had expired, the new one is good at once
            self._sleep(self._retry.backoff(failures))

    def _request(self, on_progress: Callable[[int, int], None]) -> None:
        # The stored bytes are what is checked, so nothing on the way may pack or unpack them.
        headers = {"Accept-Encoding": "identity"}
        start = self._file.size
        if start:
            headers["Range"] = f"bytes={start}-"
            if self._etag:
                headers["If-Match"] = self._etag
        with self._http.stream(
            "GET", self.ticket.url, headers=headers, follow_redirects=True
        ) as response:
            if response.status_code not in (200, 206):
                self._refused(response)
            total = _total(response)
            if total not in (None, self.ticket.bytes):
                raise _Mismatch(f"{total} bytes")
            if start and not _continues(response, start):
                self._file.restart()
                if response.status_code == 206:
                    return
            etag = response.headers.get("etag", "")
            self._etag = etag if etag.startswith('"') else None
            for block in response.iter_raw():
                self._file.append(block)
                on_progress(self._file.size, self.ticket.bytes)
                if self._file.size > self.ticket.bytes:
                    return

    def _refused(self, response: httpx.Response) -> None:
        if response.status_code in (412, 416):
            # Another object than the one that this file began with.
            self._file.restart()
            self._etag = None
        text = response.read()[:2000].decode(errors="replace")
        raise _storage_refused(response.status_code, text, response.reason_phrase)

    def _renew(self) -> None:
        ticket = self._mint()
        if (ticket.bytes, ticket.sha256) != (self.ticket.bytes, self.ticket.sha256):
            self._file.restart()
            self._etag = None
        self.ticket = ticket


def _storage_refused(status: int, text: str, phrase: str) -> errors.StorageRefused:
    """With what S3 says in its XML, where it does."""
    code = re.search(r"<Code>([^<]*)</Code>", text[:2000])
    message = re.search(r"<Message>([^<]*)</Message>", text[:2000])
    said = ": ".join(found.group(1) for found in (code, message) if found)
    return errors.StorageRefused(status, said or phrase)


def _continues(response: httpx.Response, start: int) -> bool:
    """Whether the answer begins at the byte asked for."""
    content_range = response.headers.get("content-range", "")
    return response.status_code == 206 and content_range.startswith(f"bytes {start}-")


def _total(response: httpx.Response) -> int | None:
    """The size of the whole object, where the answer tells it."""
    if response.status_code == 206:
        found = re.search(r"/(\d+)$", response.headers.get("content-range", ""))
    else:
        found = re.search(r"^(\d+)$", response.headers.get("content-length", ""))
    return int(found.group(1)) if found else None


def _file_name(stated: str) -> str:
    """The last segment of the name that the platform states, so that it stays in the folder."""
    name = re.split(r"[/\\]", stated)[-1]
    name = "".join(character for character in name if character.isprintable())
    return name if name.strip(". ") else "result"

"""Results in S3: written part by part under their attempt's own key, presigned on demand, deleted
for good.

Reading the database, packing (compression and checksums) and uploading run side by side in three
stages that hand on bounded amounts, so memory stays flat whatever the size of the result.
"""

import base64
import concurrent.futures
import contextlib
import dataclasses
import datetime as dt
import hashlib
import io
import json
import queue
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

from botocore import exceptions as aws

from jobplatform import errors, faults, jobs

# https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html
MAX_PARTS = 10_000
MIN_PART_BYTES = 5 * 2**20
MAX_PART_BYTES = 5 * 2**30
# 10 GiB of them, so that up to there no part takes more memory than the first.
_EVEN_PARTS = 1_280
_GROWTH = 1.004
_UPLOADS_AT_ONCE = 2
_CHUNKS_AHEAD = 8
# How often who waits for S3 looks whether it still should, seconds.
_LOOK = 0.1
# What an end waits for threads that S3 keeps waiting, seconds.
_LATE = 1.0
_DIGEST_BYTES = 2**20
GZIP_LEVEL = 1


def largest_part(memory_mb: int) -> int:
    """Bytes of the largest part in so much memory (MiB): two are there at once, one that is filled
    and one that is uploaded, and the rest is for everything else."""
    return min(MAX_PART_BYTES, memory_mb * 2**20 // 3)


def part_size(number: int, first: int, largest: int) -> int:
    """Bytes of part `number` (from 1): even, then each a little larger than the one before.

    With 8 MiB and up to 680 MiB, 10,000 parts hold 5 TiB.
    """
    return int(min(largest, first * _GROWTH ** max(0, number - _EVEN_PARTS)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """One piece of the upload: whole rows, and with gzip a member of its own."""

    number: int
    rows: int
    bytes: int
    sha256: str
    etag: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stored:
    """What was written, once it is complete."""

    rows: int
    bytes: int
    sha256: str
    parts: tuple[Part, ...]


# A function's credentials live for hours, but do not say how much of that is left.
_LIFE_OF_UNKNOWN = dt.timedelta(minutes=15)


class _Packer(Protocol):
    def compress(self, data: bytes) -> bytes: ...
    def flush(self) -> bytes: ...


class Bucket:
    """The results bucket; `client` is a boto3 S3 client."""

    def __init__(self, client: Any, name: str, *, public_client: Any = None) -> None:
        self.client = client
        self.name = name
        self._public_client = public_client or client

    def presign(
        self, key: str, *, filename: str, content_type: str, ask: dt.timedelta, now: dt.datetime
    ) -> tuple[str, dt.datetime]:
        """A URL and when it stops working: no later than the credentials that sign it, as far as
        they tell. Those that a function is given do not; they are not trusted for long."""
        credentials = self._public_client._request_signer._credentials
        until = now + ask
        expiry = getattr(credentials, "_expiry_time", None)
        if expiry is not None:
            credentials.get_frozen_credentials()  # refreshes those about to end
            until = min(until, credentials._expiry_time)
        elif credentials.token:
            until = min(until, now + _LIFE_OF_UNKNOWN)
        seconds = max(1, int((until - now).total_seconds()))
        url = self._public_client.generate_presigned_url(
            "get_object",
            Params={
                "Bucket": self.name,
                "Key": key,
                "ResponseContentDisposition": f'attachment; filename="{filename}"',
                "ResponseContentType": content_type,
            },
            ExpiresIn=seconds,
        )
        # A signature counts from a whole second.
        return str(url), now.replace(microsecond=0) + dt.timedelta(seconds=seconds)

    def put_manifest(self, key: str, manifest: Mapping[str, Any]) -> None:
        self.client.put_object(
            Bucket=self.name,
            Key=manifest_key(key),
            Body=json.dumps(manifest).encode(),
            ContentType="application/json",
        )

    def delete(self, keys: Iterable[str]) -> list[str]:
        """Deletes results with their manifests; answers the keys of which something may be left."""
        keys = list(keys)
        failed: set[str] = set()
        for start in range(0, len(keys), 500):
            batch = keys[start : start + 500]
            names = [name for key in batch for name in (key, manifest_key(key))]
            answer = self.client.delete_objects(
                Bucket=self.name,
                Delete={"Objects": [{"Key": name} for name in names], "Quiet": True},
            )
            failed |= {
                error["Key"].removesuffix(_MANIFEST_SUFFIX) for error in answer.get("Errors", [])
            }
        return [key for key in keys if key in failed]

    def erase_attempt(self, prefix: str) -> None:
        """Removes everything of one attempt.

        Its unfinished uploads first, so that none can be completed later.
        """
        for upload in self.client.list_multipart_uploads(Bucket=self.name, Prefix=prefix).get(
            "Uploads", []
        ):
            self.abort(upload["Key"], upload["UploadId"])
        found = self.client.list_objects_v2(Bucket=self.name, Prefix=prefix).get("Contents", [])
        for item in found:
            self.client.delete_object(Bucket=self.name, Key=item["Key"])

    def abort(self, key: str, upload_id: str) -> None:
        """Ends an upload and frees its parts, also one that has ended."""
        try:
            self.client.abort_multipart_upload(Bucket=self.name, Key=key, UploadId=upload_id)
        except aws.ClientError as error:
            if error.response["Error"]["Code"] != "NoSuchUpload":
                raise

    def uploads_before(self, moment: dt.datetime) -> Iterator[list[tuple[str, str]]]:
        """Unfinished uploads begun before `moment`, in batches of up to 1,000: (key, upload id)."""
        for page in self.client.get_paginator("list_multipart_uploads").paginate(
            Bucket=self.name, Prefix="results/"
        ):
            yield [
                (upload["Key"], upload["UploadId"])
                for upload in page.get("Uploads", [])
                if upload["Initiated"] < moment
            ]


_MANIFEST_SUFFIX = ".manifest.json"
# An upload that cannot be gone on with: somebody else completed it, aborted it, or wrote its parts.
_LOST_UPLOAD = frozenset({"NoSuchUpload", "InvalidPart", "InvalidPartOrder"})


def manifest_key(key: str) -> str:
    return key + _MANIFEST_SUFFIX


def upload_is_lost(error: BaseException) -> bool:
    """Whether the upload itself is what failed, so that trying again needs another one."""
    return (
        isinstance(error, aws.ClientError)
        and error.response.get("Error", {}).get("Code") in _LOST_UPLOAD
    )


def upload_token(key: str) -> uuid.UUID | None:
    """The attempt whose prefix a key has; None for a key that is not of that form."""
    try:
        return uuid.UUID(key.rsplit("/", 1)[-1].split(".", 1)[0])
    except ValueError:
        return None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """An upload as far as it is safe in S3; what a later writer goes on from."""

    key: str
    upload_id: str
    parts: tuple[Part, ...]
    rows: int
    bytes_in: int
    bytes_out: int
    last_row: bytes
    """Of the last part; it is not kept, only the place behind it is."""
    digest: str | None
    """State of the SHA-256 over the whole object; None where the object has to be read for it."""

    def to_json(self) -> dict[str, Any]:
        return {
            "key": self.key,
            "upload_id": self.upload_id,
            "parts": [[part.rows, part.bytes, part.sha256, part.etag] for part in self.parts],
            "rows": self.rows,
            "bytes_in": self.bytes_in,
            "bytes_out": self.bytes_out,
            "digest": self.digest,
        }

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> "Checkpoint":
        parts = tuple(
            Part(number=number, rows=rows, bytes=size, sha256=sha256, etag=etag)
            for number, (rows, size, sha256, etag) in enumerate(found["parts"], 1)
        )
        return cls(**{**found, "parts": parts, "last_row": b""})


class ResultWriter:
    """One result on its way into S3.

    `write` takes blocks of whole rows and may block until there is room. Then `complete`, `abort`
    or `suspend`. An error of packing or uploading is raised by the next call, and the reason of a
    `stop` from another thread by one that waits. A result that fits into one part is one PutObject.
    With `resume` it goes on where another writer was suspended.

    `may_suspend` chooses a checksum whose state can be handed on; a suspended writer that had not
    chosen it makes the last one read the object once. `largest_part`: bytes; memory holds two.
    """

    def __init__(
        self,
        bucket: Bucket,
        key: str,
        *,
        content_type: str,
        compression: jobs.Compression,
        part_bytes: int,
        largest_part: int,
        max_bytes: int | None = None,
        may_suspend: bool = False,
        resume: Checkpoint | None = None,
    ) -> None:
        self._bucket = bucket
        self.key = resume.key if resume else key
        self._content_type = content_type
        self._compression = compression
        self._part_bytes = max(part_bytes, MIN_PART_BYTES)
        self._largest_part = largest_part
        self._max_bytes = max_bytes
        self.rows = resume.rows if resume else 0
        self.bytes_in = resume.bytes_in if resume else 0
        self._upload_id = resume.upload_id if resume else None
        self._done: dict[int, Part] = {part.number: part for part in resume.parts} if resume else {}
        # Every part up to this one is safe, and what is true behind it is known.
        self._safe = len(self._done)
        self._resumed = resume
        self._digest = _Digest(may_suspend, resume)
        self._bytes_out = resume.bytes_out if resume else 0
        # What is true behind each part that was cut, for the checkpoints.
        self._marks: dict[int, Checkpoint] = {len(resume.parts): resume} if resume else {}
        self._lock = threading.Lock()
        self._last: tuple[int, bytes, int] | None = None
        self._chunks: queue.Queue[tuple[bytes, int, bytes] | None] = queue.Queue(_CHUNKS_AHEAD)
        self._error: BaseException | None = None
        self._suspending = False
        self._aborted = False
        self.is_complete = False
        self._room = threading.Semaphore(_UPLOADS_AT_ONCE)
        self._uploads = concurrent.futures.ThreadPoolExecutor(
            _UPLOADS_AT_ONCE, thread_name_prefix="upload"
        )
        self._in_flight: set[concurrent.futures.Future[None]] = set()
        self._packing = threading.Thread(target=self._pack_all, name="pack", daemon=True)
        self._packing.start()

    @property
    def parts(self) -> int:
        """How many parts are safe in S3."""
        return len(self._done)

    def write(self, block: bytes, rows: int, last: bytes) -> None:
        """Takes whole rows; `last` is the last of them, for the checkpoint."""
        self._look()
        self.rows += rows
        self.bytes_in += len(block)
        if self._max_bytes is not None and self.bytes_in > self._max_bytes:
            raise errors.ResultTooLarge(f"more than {self._max_bytes} bytes")
        self._hand_on((block, rows, last))

    def complete(self) -> Stored:
        """Waits for the last part and makes the object appear, whole."""
        self._hand_on(None)
        while self._packing.is_alive():
            self._look()
            self._packing.join(_LOOK)
        self._look()
        assert self._last is not None
        number, body, rows = self._last
        faults.point("upload.before_complete")
        if self._upload_id is None:
            self._put(body, rows)
        else:
            if body:
                self._start_upload(number, body, rows)
            while concurrent.futures.wait(self._in_flight, timeout=_LOOK).not_done:
                self._look()
            self._complete_parts()
        self.is_complete = True
        self._uploads.shutdown()
        faults.point("upload.after_complete")
        parts = tuple(self._done[number] for number in sorted(self._done))
        return Stored(
            rows=self.rows,
            bytes=self._bytes_out,
            sha256=self._digest.hexdigest() or self._read_digest(),
            parts=parts,
        )

    def checkpoint(self) -> Checkpoint | None:
        """The upload up to the last part that is safe with all before it; None where none is."""
        with self._lock:
            mark = self._marks.get(self._safe)
            if mark is None:
                return None
            parts = tuple(self._done[number] for number in range(1, self._safe + 1))
        return dataclasses.replace(mark, parts=parts)

    def stop(self, reason: BaseException) -> None:
        """From another thread: whoever waits in this writer raises the reason instead."""
        self._error = self._error or reason

    def suspend(self, *, seconds: float) -> Checkpoint | None:
        """Stops behind the last whole part and leaves the upload open.

        Parts on their way may take so many seconds more; what is not safe then does not count.
        """
        until = time.monotonic() + seconds
        if self._error is None:
            self._suspending = True
            with contextlib.suppress(queue.Full):
                self._chunks.put(None, timeout=max(0.0, seconds))
            self._packing.join(max(0.0, until - time.monotonic()))
        concurrent.futures.wait(self._in_flight, timeout=max(0.0, until - time.monotonic()))
        self._end(time.monotonic() + _LATE)
        return self.checkpoint()

    def abort(self) -> None:
        """Stops the stages and removes what was written. Safe to call at any time.

        Parts on their way get a moment, for S3 may keep one that it takes beside the abort. It does
        not wait for longer: whoever brings one later removes it.
        https://docs.aws.amazon.com/AmazonS3/latest/API/API_AbortMultipartUpload.html
        """
        until = time.monotonic() + _LATE
        self._end(until)
        # What was cancelled is done, but a wait for it would not end.
        on_their_way = [upload for upload in self._in_flight if not upload.done()]
        concurrent.futures.wait(on_their_way, timeout=max(0.0, until - time.monotonic()))
        self._aborted = True
        self._free()

    def _end(self, until: float) -> None:
        self.stop(errors.ExecutionError("the upload was stopped"))
        self._uploads.shutdown(wait=False, cancel_futures=True)
        # The packer may be waiting for a block, or for room; it looks at the error after both.
        while self._packing.is_alive() and time.monotonic() < until:
            with contextlib.suppress(queue.Full):
                self._chunks.put(None, timeout=0.05)
            self._packing.join(timeout=0.05)

    def _free(self) -> None:
        if self._upload_id is not None:
            self._bucket.abort(self.key, self._upload_id)

    def _free_late(self) -> None:
        """What S3 takes while an upload is ended may stay: it has to be ended again then."""
        if self._aborted:
            with contextlib.suppress(Exception):
                self._free()

    def _look(self) -> None:
        if self._error is not None:
            raise self._error

    def _hand_on(self, item: tuple[bytes, int, bytes] | None) -> None:
        while True:
            self._look()
            with contextlib.suppress(queue.Full):
                self._chunks.put(item, timeout=_LOOK)
                return

    def _pack_all(self) -> None:
        try:
            self._pack()
        except BaseException as error:
            self.stop(error)
            self._free_late()

    def _pack(self) -> None:
        number = len(self._done) + 1
        # It gives its bytes away without a copy; pieces joined at the end would be there twice.
        body = io.BytesIO()
        rows = 0
        rows_before = self._resumed.rows if self._resumed else 0
        bytes_in = self._resumed.bytes_in if self._resumed else 0
        packer: _Packer | None = None
        size = part_size(number, self._part_bytes, self._largest_part)
        while (item := self._next_block()) is not None:
            block, count, last = item
            rows += count
            bytes_in += len(block)
            if self._compression is jobs.Compression.GZIP:
                packer = packer or _gzip_member()
                block = packer.compress(block)
            body.write(block)
            if body.tell() >= size:
                if packer is not None:
                    body.write(packer.flush())
                    packer = None
                rows_before += rows
                self._send(number, body.getvalue(), rows, (rows_before, bytes_in, last))
                number += 1
                size = part_size(number, self._part_bytes, self._largest_part)
                body, rows = io.BytesIO(), 0
        if self._suspending:
            return
        if packer is not None:
            body.write(packer.flush())
        elif self._compression is jobs.Compression.GZIP and number == 1:
            body.write(_gzip_member().flush())
        self._last = (number, body.getvalue(), rows)
        self._account(self._last[1])

    def _next_block(self) -> tuple[bytes, int, bytes] | None:
        item = self._chunks.get()
        self._look()
        return item

    def _account(self, body: bytes) -> None:
        self._digest.update(body)
        self._bytes_out += len(body)

    def _send(self, number: int, body: bytes, rows: int, mark: tuple[int, int, bytes]) -> None:
        if number >= MAX_PARTS:
            raise errors.ResultTooLarge(
                f"more than {MAX_PARTS} parts, of up to {self._largest_part} bytes in the worker's"
                " memory"
            )
        if self._upload_id is None:
            self._upload_id = self._bucket.client.create_multipart_upload(
                Bucket=self._bucket.name,
                Key=self.key,
                ContentType=self._content_type,
                ChecksumAlgorithm="SHA256",
            )["UploadId"]
            faults.point("upload.created")
        self._account(body)
        rows_so_far, bytes_in, last = mark
        self._marks[number] = Checkpoint(
            key=self.key,
            upload_id=self._upload_id,
            parts=(),
            rows=rows_so_far,
            bytes_in=bytes_in,
            bytes_out=self._bytes_out,
            last_row=last,
            digest=self._digest.state(),
        )
        self._start_upload(number, body, rows)

    def _start_upload(self, number: int, body: bytes, rows: int) -> None:
        """Waits for room: three parts are in memory at once, or two where three are too many."""
        for _ in range(self._places(body)):
            while not self._room.acquire(timeout=_LOOK):
                self._look()
        self._look()
        self._in_flight = {upload for upload in self._in_flight if not upload.done()}
        self._in_flight.add(self._uploads.submit(self._upload, number, body, rows))

    def _places(self, body: bytes) -> int:
        return 1 if 3 * len(body) <= 2 * self._largest_part else _UPLOADS_AT_ONCE

    def _upload(self, number: int, body: bytes, rows: int) -> None:
        try:
            digest = hashlib.sha256(body).hexdigest()
            faults.point("upload.part")
            etag = self._bucket.client.upload_part(
                Bucket=self._bucket.name,
                Key=self.key,
                UploadId=self._upload_id,
                PartNumber=number,
                Body=body,
                ChecksumSHA256=_base64(digest),
            )["ETag"]
            self._note(Part(number=number, rows=rows, bytes=len(body), sha256=digest, etag=etag))
        except BaseException as error:
            self.stop(error)
        finally:
            self._room.release(self._places(body))
            self._free_late()

    def _note(self, part: Part) -> None:
        with self._lock:
            self._done[part.number] = part
            while self._safe + 1 in self._done and self._safe + 1 in self._marks:
                self._marks.pop(self._safe, None)
                self._safe += 1

    def _put(self, body: bytes, rows: int) -> None:
        digest = hashlib.sha256(body).hexdigest()
        etag = self._bucket.client.put_object(
            Bucket=self._bucket.name,
            Key=self.key,
            Body=body,
            ContentType=self._content_type,
            ChecksumSHA256=_base64(digest),
            IfNoneMatch="*",
        )["ETag"]
        self._done[1] = Part(number=1, rows=rows, bytes=len(body), sha256=digest, etag=etag)

    def _complete_parts(self) -> None:
        self._look()
        self._bucket.client.complete_multipart_upload(
            Bucket=self._bucket.name,
            Key=self.key,
            UploadId=self._upload_id,
            MultipartUpload={
                "Parts": [
                    {
                        "PartNumber": number,
                        "ETag": self._done[number].etag,
                        "ChecksumSHA256": _base64(self._done[number].sha256),
                    }
                    for number in sorted(self._done)
                ]
            },
            IfNoneMatch="*",
        )

    def _read_digest(self) -> str:
        found = self._bucket.client.get_object(Bucket=self._bucket.name, Key=self.key)
        digest = hashlib.sha256()
        for block in found["Body"].iter_chunks(_DIGEST_BYTES):
            self._look()
            digest.update(block)
        return digest.hexdigest()


class _Digest:
    """SHA-256 over the whole object. Only that of `rehashes` can be handed on, but it lets no other
    thread run meanwhile, and there is none of it for some platforms."""

    def __init__(self, may_suspend: bool, resume: Checkpoint | None) -> None:
        self._plain: Any = None
        self._resumable: Any = None
        if resume is None and not may_suspend:
            self._plain = hashlib.sha256()
            return
        try:
            import rehashes
        except ImportError:
            self._plain = None if resume else hashlib.sha256()
            return
        if resume is None:
            self._resumable = rehashes.PySha256()
        elif resume.digest is not None:
            self._resumable = rehashes.PySha256.deserialize(base64.b64decode(resume.digest))

    def update(self, piece: bytes) -> None:
        if self._plain is not None:
            self._plain.update(piece)
        elif self._resumable is not None:
            for start in range(0, len(piece), _DIGEST_BYTES):
                self._resumable.update(piece[start : start + _DIGEST_BYTES])

    def state(self) -> str | None:
        return base64.b64encode(self._resumable.serialize()).decode() if self._resumable else None

    def hexdigest(self) -> str | None:
        """None where it is not known without reading the object."""
        if self._plain is not None:
            return str(self._plain.hexdigest())
        return str(self._resumable.finalize()) if self._resumable else None


def _base64(hexdigest: str) -> str:
    return base64.b64encode(bytes.fromhex(hexdigest)).decode()


def _gzip_member() -> _Packer:
    """RFC 1952: members one after the other are a valid file, so each part is one."""
    from isal import isal_zlib

    packer: _Packer = isal_zlib.compressobj(GZIP_LEVEL, isal_zlib.DEFLATED, 31)
    return packer

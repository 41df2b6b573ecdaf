"""Results in S3: written part by part under their attempt's own key, presigned on demand, deleted for good.

Reading the database, packing (compression and checksums) and uploading run side by side in three stages that hand
on bounded amounts, so memory stays flat whatever the size of the result.
"""

import base64
import concurrent.futures
import dataclasses
import datetime as dt
import hashlib
import json
import queue
import threading
import uuid
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from botocore import exceptions as aws

from jobplatform import errors, jobs

# https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html
MAX_PARTS = 10_000
MIN_PART_BYTES = 5 * 2**20
MAX_PART_BYTES = 5 * 2**30
_EVEN_PARTS = 1_000
_UPLOADS_AT_ONCE = 2
_CHUNKS_AHEAD = 16
GZIP_LEVEL = 1


def part_size(number: int, first: int) -> int:
    """Bytes of part `number` (from 1): even at first, then growing, so that 10,000 parts hold 5 TB."""
    if number <= _EVEN_PARTS:
        return first
    return min(MAX_PART_BYTES, first * number * number // (_EVEN_PARTS * _EVEN_PARTS))


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
        """A URL and the time when it really stops working: no later than the credentials that sign it."""
        credentials = self._public_client._request_signer._credentials
        until = now + ask
        expiry = getattr(credentials, "_expiry_time", None)
        if expiry is not None:
            credentials.get_frozen_credentials()  # refreshes those about to end
            until = min(until, credentials._expiry_time)
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
        return str(url), now + dt.timedelta(seconds=seconds)

    def put_manifest(self, key: str, manifest: Mapping[str, Any]) -> None:
        self.client.put_object(
            Bucket=self.name,
            Key=manifest_key(key),
            Body=json.dumps(manifest, indent=1).encode(),
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
        """Removes everything of one attempt: its unfinished uploads first, so that none can be completed later."""
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

    def uploads_before(self, moment: dt.datetime) -> list[tuple[str, str]]:
        """Unfinished uploads begun before `moment`: (key, upload id)."""
        found: list[tuple[str, str]] = []
        for page in self.client.get_paginator("list_multipart_uploads").paginate(
            Bucket=self.name, Prefix="results/"
        ):
            found += [
                (upload["Key"], upload["UploadId"])
                for upload in page.get("Uploads", [])
                if upload["Initiated"] < moment
            ]
        return found


_MANIFEST_SUFFIX = ".manifest.json"


def manifest_key(key: str) -> str:
    return key + _MANIFEST_SUFFIX


def upload_token(key: str) -> uuid.UUID | None:
    """The attempt whose prefix a key has; None for a key that is not of that form."""
    try:
        return uuid.UUID(key.rsplit("/", 1)[-1].split(".", 1)[0])
    except ValueError:
        return None


class ResultWriter:
    """One result on its way into S3.

    `write` takes chunks of whole rows and may block until there is room. Then either `complete` or `abort`. An error
    of packing or uploading is raised by the next call. A result that fits into one part is one PutObject.
    """

    def __init__(
        self,
        bucket: Bucket,
        key: str,
        *,
        content_type: str,
        compression: jobs.Compression,
        part_bytes: int,
        max_bytes: int | None = None,
    ) -> None:
        self._bucket = bucket
        self.key = key
        self._content_type = content_type
        self._compression = compression
        self._part_bytes = max(part_bytes, MIN_PART_BYTES)
        self._max_bytes = max_bytes
        self.rows = 0
        self.bytes_in = 0
        self._upload_id: str | None = None
        self._parts: list[concurrent.futures.Future[Part]] = []
        self._digest = hashlib.sha256()
        self._bytes_out = 0
        self._last: tuple[list[bytes], int] | None = None
        self._chunks: queue.Queue[tuple[bytes, int] | None] = queue.Queue(_CHUNKS_AHEAD)
        self._error: BaseException | None = None
        self._room = threading.Semaphore(_UPLOADS_AT_ONCE)
        self._uploads = concurrent.futures.ThreadPoolExecutor(
            _UPLOADS_AT_ONCE, thread_name_prefix="upload"
        )
        self._packing = threading.Thread(target=self._pack_all, name="pack", daemon=True)
        self._packing.start()

    def write(self, chunk: bytes, rows: int) -> None:
        if self._error is not None:
            raise self._error
        self.rows += rows
        self.bytes_in += len(chunk)
        if self._max_bytes is not None and self.bytes_in > self._max_bytes:
            raise errors.ResultTooLarge(f"more than {self._max_bytes} bytes")
        self._chunks.put((chunk, rows))

    def complete(self, *, header_rows: int = 0) -> Stored:
        """Waits for the last part and makes the object appear, whole. `header_rows` are not counted as rows."""
        self._chunks.put(None)
        self._packing.join()
        if self._error is not None:
            raise self._error
        parts = [future.result() for future in self._parts]
        assert self._last is not None
        pieces, rows = self._last
        body = b"".join(pieces)
        if self._upload_id is None:
            etag = self._bucket.client.put_object(
                Bucket=self._bucket.name,
                Key=self.key,
                Body=body,
                ContentType=self._content_type,
                IfNoneMatch="*",
            )["ETag"]
            parts = [_part(1, body, rows - header_rows, etag)]
        else:
            if body:
                self._room.acquire()
                parts.append(self._upload(len(parts) + 1, body, rows))
            parts[0] = dataclasses.replace(parts[0], rows=parts[0].rows - header_rows)
            self._bucket.client.complete_multipart_upload(
                Bucket=self._bucket.name,
                Key=self.key,
                UploadId=self._upload_id,
                MultipartUpload={
                    "Parts": [
                        {
                            "PartNumber": part.number,
                            "ETag": part.etag,
                            "ChecksumSHA256": _base64(part.sha256),
                        }
                        for part in parts
                    ]
                },
                IfNoneMatch="*",
            )
        self._uploads.shutdown()
        return Stored(
            rows=self.rows - header_rows,
            bytes=self._bytes_out,
            sha256=self._digest.hexdigest(),
            parts=tuple(parts),
        )

    def abort(self) -> None:
        """Stops the stages and removes what they wrote. Safe to call at any time."""
        if self._error is None:
            self._error = errors.ExecutionError("the upload was aborted")
        if self._packing.is_alive():
            # The packer may be waiting for a chunk, or for room; it looks at the error after both.
            while self._packing.is_alive():
                try:
                    self._chunks.put(None, timeout=0.1)
                except queue.Full:
                    continue
                self._packing.join(timeout=0.1)
        self._uploads.shutdown(cancel_futures=True)
        if self._upload_id is not None:
            self._bucket.abort(self.key, self._upload_id)

    def _pack_all(self) -> None:
        try:
            self._pack()
        except BaseException as error:
            self._error = error
            # A writer that waits for room in the queue has to get it to see the error.
            while True:
                try:
                    self._chunks.get_nowait()
                except queue.Empty:
                    break

    def _pack(self) -> None:
        number = 1
        pieces: list[bytes] = []
        size = rows = 0
        packer: _Packer | None = None
        while (item := self._next_chunk()) is not None:
            chunk, count = item
            rows += count
            if self._compression is jobs.Compression.GZIP:
                packer = packer or _gzip_member()
                chunk = packer.compress(chunk)
            if chunk:
                pieces.append(chunk)
                size += len(chunk)
            if size >= part_size(number, self._part_bytes):
                if packer is not None:
                    pieces.append(packer.flush())
                    packer = None
                self._send(number, pieces, rows)
                number += 1
                pieces, size, rows = [], 0, 0
        if packer is not None:
            pieces.append(packer.flush())
        elif self._compression is jobs.Compression.GZIP and number == 1:
            pieces.append(_gzip_member().flush())
        self._account(pieces)
        self._last = (pieces, rows)

    def _next_chunk(self) -> tuple[bytes, int] | None:
        item = self._chunks.get()
        if self._error is not None:
            raise self._error
        return item

    def _account(self, pieces: list[bytes]) -> None:
        for piece in pieces:
            self._digest.update(piece)
            self._bytes_out += len(piece)

    def _send(self, number: int, pieces: list[bytes], rows: int) -> None:
        if number >= MAX_PARTS:
            raise errors.ResultTooLarge(f"more than {MAX_PARTS} parts")
        if self._upload_id is None:
            self._upload_id = self._bucket.client.create_multipart_upload(
                Bucket=self._bucket.name,
                Key=self.key,
                ContentType=self._content_type,
                ChecksumAlgorithm="SHA256",
            )["UploadId"]
        self._account(pieces)
        self._room.acquire()
        if self._error is not None:
            raise self._error
        self._parts.append(self._uploads.submit(self._upload, number, b"".join(pieces), rows))

    def _upload(self, number: int, body: bytes, rows: int) -> Part:
        try:
            digest = hashlib.sha256(body).hexdigest()
            etag = self._bucket.client.upload_part(
                Bucket=self._bucket.name,
                Key=self.key,
                UploadId=self._upload_id,
                PartNumber=number,
                Body=body,
                ChecksumSHA256=_base64(digest),
            )["ETag"]
            return Part(number=number, rows=rows, bytes=len(body), sha256=digest, etag=etag)
        except BaseException as error:
            self._error = self._error or error
            raise
        finally:
            self._room.release()


def _part(number: int, body: bytes, rows: int, etag: str) -> Part:
    digest = hashlib.sha256(body).hexdigest()
    return Part(number=number, rows=rows, bytes=len(body), sha256=digest, etag=etag)


def _base64(hexdigest: str) -> str:
    return base64.b64encode(bytes.fromhex(hexdigest)).decode()


def _gzip_member() -> _Packer:
    """RFC 1952: members one after the other are a valid file, so each part is one."""
    from isal import isal_zlib

    packer: _Packer = isal_zlib.compressobj(GZIP_LEVEL, isal_zlib.DEFLATED, 31)
    return packer

"""An S3 that is as strict as AWS where the emulators are lenient.

`harden` hooks into a boto3 client and checks, before a request goes to the emulator, what AWS would
refuse and moto and MiniStack accept; the errors are those of AWS. It can also make calls fail.
"""

import dataclasses
import datetime as dt
import threading
import weakref
from collections.abc import Callable
from typing import Any

from botocore import exceptions as aws

MIN_PART_BYTES = 5 * 2**20


@dataclasses.dataclass
class _Upload:
    key: str
    begun: dt.datetime
    checksum: str | None
    sizes: dict[int, int] = dataclasses.field(default_factory=dict)


def refused(operation: str, code: str, message: str, status: int) -> aws.ClientError:
    return aws.ClientError(
        {
            "Error": {"Code": code, "Message": message},
            "ResponseMetadata": {
                "HTTPStatusCode": status,
                "RequestId": "",
                "HostId": "",
                "HTTPHeaders": {},
                "RetryAttempts": 0,
            },
        },
        operation,
    )


class StrictS3:
    """What AWS knows about each upload, and how many bytes a real S3 would hold in objects."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._lock = threading.Lock()
        self.uploads: dict[str, _Upload] = {}
        self.calls: list[str] = []
        self.failures: dict[str, Callable[[int], None]] = {}
        """By operation: called with the number of the call, and may raise."""
        events = client.meta.events
        events.register("provide-client-params.s3.*", self._before)
        events.register("after-call.s3.CreateMultipartUpload", self._created)
        events.register("after-call.s3.ListMultipartUploads", self._listed)

    def fail(self, operation: str, act: Callable[[int], None]) -> None:
        """Before each call of an operation `act` is called with its number, from 1."""
        self.failures[operation] = act

    def _before(
        self, params: dict[str, Any], model: Any, context: dict[str, Any], **_: Any
    ) -> None:
        name = model.name
        context["params"] = params
        with self._lock:
            self.calls.append(name)
            number = self.calls.count(name)
        act = self.failures.get(name)
        if act is not None:
            act(number)
        check = getattr(self, f"_check_{name}", None)
        if check is not None:
            check(params)

    def _created(self, parsed: dict[str, Any], context: dict[str, Any], **_: Any) -> None:
        if "UploadId" in parsed:
            params = context["params"]
            self.uploads[parsed["UploadId"]] = _Upload(
                params["Key"], dt.datetime.now(dt.UTC), params.get("ChecksumAlgorithm")
            )

    def _listed(self, parsed: dict[str, Any], **_: Any) -> None:
        # moto says that every upload began in 2010.
        for found in parsed.get("Uploads", []):
            known = self.uploads.get(found["UploadId"])
            if known is not None:
                found["Initiated"] = known.begun

    def _check_UploadPart(self, params: dict[str, Any]) -> None:
        upload = self._upload("UploadPart", params)
        number = params["PartNumber"]
        if not 1 <= number <= 10_000:
            message = "Part number must be an integer between 1 and 10000, inclusive"
            raise refused("UploadPart", "InvalidArgument", message, 400)
        if upload.checksum and f"Checksum{upload.checksum}" not in params:
            message = "The upload was created with a checksum algorithm; each part needs one."
            raise refused("UploadPart", "InvalidRequest", message, 400)
        upload.sizes[number] = len(params["Body"])

    def _check_CompleteMultipartUpload(self, params: dict[str, Any]) -> None:
        name = "CompleteMultipartUpload"
        upload = self._upload(name, params)
        parts = params["MultipartUpload"]["Parts"]
        numbers = [part["PartNumber"] for part in parts]
        if not numbers:
            raise refused(name, "MalformedXML", "You must specify at least one part", 400)
        if numbers != sorted(set(numbers)):
            raise refused(name, "InvalidPartOrder", "Parts must be ordered by part number.", 400)
        if any(number not in upload.sizes for number in numbers):
            raise refused(name, "InvalidPart", "One or more parts could not be found.", 400)
        if upload.checksum:
            if numbers != list(range(1, len(numbers) + 1)):
                message = "Parts of an upload with checksums are numbered 1, 2, 3 without gaps."
                raise refused(name, "InvalidRequest", message, 400)
            if any(f"Checksum{upload.checksum}" not in part for part in parts):
                raise refused(name, "InvalidRequest", "A part comes without its checksum.", 400)
        if any(upload.sizes[number] < MIN_PART_BYTES for number in numbers[:-1]):
            message = "Your proposed upload is smaller than the minimum allowed size"
            raise refused(name, "EntityTooSmall", message, 400)
        if params.get("IfNoneMatch") == "*" and self._exists(params):
            message = "At least one of the pre-conditions you specified did not hold"
            raise refused(name, "PreconditionFailed", message, 412)
        del self.uploads[params["UploadId"]]

    def _check_AbortMultipartUpload(self, params: dict[str, Any]) -> None:
        self._upload("AbortMultipartUpload", params)
        del self.uploads[params["UploadId"]]

    def _check_PutObject(self, params: dict[str, Any]) -> None:
        if params.get("IfNoneMatch") == "*" and self._exists(params):
            message = "At least one of the pre-conditions you specified did not hold"
            raise refused("PutObject", "PreconditionFailed", message, 412)

    def _check_DeleteObjects(self, params: dict[str, Any]) -> None:
        if not 1 <= len(params["Delete"]["Objects"]) <= 1_000:
            raise refused("DeleteObjects", "MalformedXML", "1 to 1000 keys", 400)

    def _upload(self, operation: str, params: dict[str, Any]) -> _Upload:
        found = self.uploads.get(params["UploadId"])
        if found is None or found.key != params["Key"]:
            message = "The specified upload does not exist."
            raise refused(operation, "NoSuchUpload", message, 404)
        return found

    def _exists(self, params: dict[str, Any]) -> bool:
        found = self._client.list_objects_v2(
            Bucket=params["Bucket"], Prefix=params["Key"], MaxKeys=1
        ).get("Contents", [])
        return any(item["Key"] == params["Key"] for item in found)


_hardened: weakref.WeakKeyDictionary[Any, StrictS3] = weakref.WeakKeyDictionary()


def harden(client: Any) -> StrictS3:
    """The strict side of a client; the same one however often it is asked for."""
    if client not in _hardened:
        _hardened[client] = StrictS3(client)
    return _hardened[client]

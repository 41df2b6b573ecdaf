"""The writer of results against an S3 that refuses what AWS refuses."""

import dataclasses
import datetime as dt
import gzip
import hashlib
import json
import sys
import threading
import uuid
from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest
from botocore import exceptions as aws
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from jobplatform import errors, faults, jobs, results, settings
from tests.helpers import platform, store
from tests.helpers.s3 import MIN_PART_BYTES, StrictS3, refused

NONE, GZIP = jobs.Compression.NONE, jobs.Compression.GZIP
BLOCK = 256 * 1024


def key() -> str:
    return f"results/{uuid.uuid4()}/{uuid.uuid4()}/{uuid.uuid4()}.csv"


def writer(bucket: results.Bucket, **changes: Any) -> results.ResultWriter:
    values: dict[str, Any] = {
        "key": key(),
        "content_type": "text/csv",
        "compression": NONE,
        "part_bytes": MIN_PART_BYTES,
        "largest_part": 100 * MIN_PART_BYTES,
    }
    values |= changes
    return results.ResultWriter(bucket, values.pop("key"), **values)


def blocks(count: int, size: int = BLOCK) -> list[bytes]:
    """Text that compresses to something like a third, a row a kilobyte, none like another."""
    made = []
    for number in range(count):
        digest = hashlib.sha256(str(number).encode()).hexdigest().encode()
        row = (digest * 16)[:1023] + b"\n"
        made.append((row * (size // 1024 + 1))[:size])
    return made


def stored(bucket: results.Bucket, name: str) -> bytes:
    body = bucket.client.get_object(Bucket=bucket.name, Key=name)["Body"].read()
    assert isinstance(body, bytes)
    return body


def write(target: results.ResultWriter, pieces: list[bytes]) -> results.Stored:
    for piece in pieces:
        target.write(piece, 1, piece)
    return target.complete()


@pytest.mark.parametrize("compression", [NONE, GZIP])
@pytest.mark.parametrize("count", [0, 1, 19, 20, 21, 40, 100])
def test_any_number_of_blocks_is_an_object_that_aws_would_take(
    bucket: results.Bucket, s3: StrictS3, count: int, compression: jobs.Compression
) -> None:
    target = writer(bucket, compression=compression)
    pieces = blocks(count)

    done = write(target, pieces)

    body = stored(bucket, target.key)
    text = gzip.decompress(body) if compression is GZIP else body
    assert text == b"".join(pieces)
    assert (done.rows, done.bytes) == (count, len(body))
    assert done.sha256 == hashlib.sha256(body).hexdigest()
    assert sum(part.bytes for part in done.parts) == len(body)
    assert sum(part.rows for part in done.parts) == count
    assert s3.uploads == {}
    position = 0
    for part in done.parts:
        piece = body[position : position + part.bytes]
        assert part.sha256 == hashlib.sha256(piece).hexdigest()
        position += part.bytes
    if len(pieces) < 20:
        assert s3.calls.count("PutObject") == 1
        assert "CreateMultipartUpload" not in s3.calls


def test_each_part_of_a_compressed_result_is_a_file_of_its_own(bucket: results.Bucket) -> None:
    target = writer(bucket, compression=GZIP)
    noise = [hashlib.shake_256(str(n).encode()).digest(BLOCK) for n in range(60)]

    done = write(target, noise)

    body = stored(bucket, target.key)
    assert len(done.parts) > 2
    position, unpacked = 0, []
    for part in done.parts:
        unpacked.append(gzip.decompress(body[position : position + part.bytes]))
        position += part.bytes
    assert b"".join(unpacked) == b"".join(noise)


@hypothesis.settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    sizes=st.lists(st.integers(1, 3 * MIN_PART_BYTES), max_size=6),
    compression=st.sampled_from([NONE, GZIP]),
)
def test_blocks_of_any_size(
    bucket: results.Bucket, sizes: list[int], compression: jobs.Compression
) -> None:
    target = writer(bucket, compression=compression)
    pieces = [hashlib.shake_256(str(n).encode()).digest(size) for n, size in enumerate(sizes)]

    done = write(target, pieces)

    body = stored(bucket, target.key)
    text = gzip.decompress(body) if compression is GZIP else body
    assert text == b"".join(pieces)
    assert done.sha256 == hashlib.sha256(body).hexdigest()


def test_parts_that_finish_in_another_order_are_put_in_theirs(
    bucket: results.Bucket, s3: StrictS3
) -> None:
    second = threading.Event()

    def late(number: int) -> None:
        if number == 1:
            assert second.wait(10)
        else:
            second.set()

    s3.fail("UploadPart", late)
    target = writer(bucket)
    pieces = blocks(70)

    done = write(target, pieces)

    assert stored(bucket, target.key) == b"".join(pieces)
    assert [part.number for part in done.parts] == list(range(1, len(done.parts) + 1))


def test_no_more_than_two_parts_are_under_way_however_slow_s3_is(
    bucket: results.Bucket, s3: StrictS3
) -> None:
    """The reader is held up instead, so that memory stays flat."""
    under_way, most = 0, 0
    lock, go_on = threading.Lock(), threading.Event()

    def slow(number: int) -> None:
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        go_on.wait(10)
        with lock:
            under_way -= 1

    s3.fail("UploadPart", slow)
    target = writer(bucket)
    written = 0
    finished = threading.Event()

    def feed() -> None:
        nonlocal written
        for piece in blocks(200):
            target.write(piece, 1, piece)
            written += 1
        finished.set()

    feeder = threading.Thread(target=feed)
    feeder.start()
    store.until(lambda: most == 2)
    # Two parts in the air, one being filled, and the queue of blocks: then the feeder stands still.
    store.until(lambda: _stands_still(lambda: written))
    assert written <= 3 * 20 + 40
    go_on.set()
    feeder.join(30)
    assert finished.is_set()
    target.complete()
    assert most == 2


def _stands_still(value: Any) -> bool:
    before = value()
    threading.Event().wait(0.3)
    return bool(value() == before)


@pytest.mark.parametrize("operation", ["CreateMultipartUpload", "UploadPart"])
def test_an_error_of_a_part_reaches_the_writer_and_nothing_is_left(
    bucket: results.Bucket, s3: StrictS3, operation: str
) -> None:
    def broken(number: int) -> None:
        raise refused(operation, "InternalError", "no", 500)

    s3.fail(operation, broken)
    target = writer(bucket)

    with pytest.raises(aws.ClientError, match="InternalError"):
        write(target, blocks(200))
    target.abort()

    assert platform.left_in(bucket) == []
    assert not [thread for thread in threading.enumerate() if thread.name == "pack"]


@pytest.mark.parametrize("written", [0, 1, 30, 100])
def test_an_abort_at_any_time_leaves_nothing(
    bucket: results.Bucket, s3: StrictS3, written: int
) -> None:
    target = writer(bucket)
    for piece in blocks(written):
        target.write(piece, 1, piece)

    target.abort()
    target.abort()

    assert platform.left_in(bucket) == []
    assert s3.uploads == {}
    with pytest.raises(errors.ExecutionError):
        target.write(b"more\n", 1, b"more\n")


def test_an_abort_gives_a_part_on_its_way_a_moment(
    bucket: results.Bucket, s3: StrictS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "_LATE", 30.0)
    uploading, go_on = threading.Event(), threading.Event()

    def wait(number: int) -> None:
        uploading.set()
        assert go_on.wait(30)

    s3.fail("UploadPart", wait)
    target = writer(bucket)
    for piece in blocks(25):
        target.write(piece, 1, piece)
    assert uploading.wait(20)
    aborting = threading.Thread(target=target.abort)
    aborting.start()

    aborting.join(0.3)
    assert aborting.is_alive()
    assert "AbortMultipartUpload" not in s3.calls
    go_on.set()
    aborting.join()

    assert platform.left_in(bucket) == []
    assert s3.uploads == {}


def test_a_zombie_whose_upload_was_ended_cannot_finish_it(
    bucket: results.Bucket, s3: StrictS3
) -> None:
    target = writer(bucket)
    for piece in blocks(50):
        target.write(piece, 1, piece)
    store.until(lambda: target.parts >= 2)
    # The dispatcher takes the attempt for dead and removes what it left.
    bucket.erase_attempt(target.key.removesuffix(".csv"))

    with pytest.raises(aws.ClientError, match="NoSuchUpload"):
        target.complete()

    assert platform.left_in(bucket) == []


@pytest.mark.parametrize("count", [1, 50])
def test_an_object_is_never_written_over(bucket: results.Bucket, count: int) -> None:
    first = writer(bucket)
    write(first, blocks(count))
    before = stored(bucket, first.key)
    second = writer(bucket, key=first.key)

    with pytest.raises(aws.ClientError, match="PreconditionFailed"):
        write(second, blocks(count + 1))
    second.abort()

    assert stored(bucket, first.key) == before


def test_a_result_of_too_many_parts_is_too_large(
    bucket: results.Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "MAX_PARTS", 3)
    fits = writer(bucket)
    assert len(write(fits, blocks(2 * 20 + 5)).parts) == 3
    target = writer(bucket)

    with pytest.raises(errors.ResultTooLarge):
        write(target, blocks(100))
    target.abort()

    assert {name.removesuffix(".manifest.json") for name in platform.left_in(bucket)} == {fits.key}


@pytest.mark.parametrize("compression", [NONE, GZIP])
@pytest.mark.parametrize("may_suspend", [True, False])
def test_a_suspended_upload_goes_on_in_another_writer(
    bucket: results.Bucket, s3: StrictS3, may_suspend: bool, compression: jobs.Compression
) -> None:
    noise = [hashlib.shake_256(str(n).encode()).digest(BLOCK) for n in range(75)]
    expected = b"".join(noise)
    first = writer(bucket, may_suspend=may_suspend, compression=compression)
    for piece in noise[:50]:
        first.write(piece, 1, piece)
    saved = first.suspend(seconds=30)
    assert saved is not None
    again = results.Checkpoint.from_json(json.loads(json.dumps(saved.to_json())))
    # The place to go on from is kept as values of the order, not as the row.
    assert again == dataclasses.replace(saved, last_row=b"")
    second = writer(bucket, compression=compression, resume=again, may_suspend=may_suspend)
    assert second.key == first.key

    done = write(second, noise[again.rows :])

    body = stored(bucket, second.key)
    assert (gzip.decompress(body) if compression is GZIP else body) == expected
    assert done.sha256 == hashlib.sha256(body).hexdigest()
    assert (done.rows, done.bytes) == (75, len(body))
    assert s3.uploads == {}


def whole(first: int, largest: int) -> int:
    """Bytes of the largest object."""
    return sum(results.part_size(n, first, largest) for n in range(1, results.MAX_PARTS + 1))


def test_parts_grow_so_that_ten_thousand_hold_five_terabytes() -> None:
    default = settings.WorkerSettings()
    first, largest = default.part_bytes, results.largest_part(default.memory_mb)
    sizes = [results.part_size(number, first, largest) for number in range(1, 10_001)]

    assert sizes[:1280] == [first] * 1280
    assert sizes == sorted(sizes)
    assert max(sizes) == largest <= 690 * 2**20
    assert sum(sizes) >= 5 * 2**40


@pytest.mark.parametrize(
    ("memory_mb", "largest_object"),
    [(512, 1.2 * 2**40), (1024, 2.5 * 2**40), (2048, 5 * 2**40), (10_240, 20 * 2**40)],
)
def test_what_a_worker_of_so_much_memory_can_write(memory_mb: int, largest_object: float) -> None:
    """The numbers in docs/reference/results.md."""
    largest = results.largest_part(memory_mb)

    assert 2 * largest <= memory_mb * 2**20 * 2 / 3
    assert whole(8 * 2**20, largest) >= largest_object


@given(
    st.integers(1, results.MAX_PARTS),
    st.integers(MIN_PART_BYTES, results.MAX_PART_BYTES),
    st.integers(512, 10_240),
)
def test_a_part_is_never_smaller_or_larger_than_s3_takes(
    number: int, first: int, memory_mb: int
) -> None:
    size = results.part_size(number, first, results.largest_part(memory_mb))

    assert MIN_PART_BYTES <= size <= results.MAX_PART_BYTES


@pytest.mark.parametrize(("largest", "at_once"), [(2, 2), (1, 1)])
def test_large_parts_are_uploaded_one_at_a_time(
    bucket: results.Bucket, s3: StrictS3, largest: int, at_once: int
) -> None:
    """So that two are in memory, the one that is filled and this one, and not three."""
    lock = threading.Lock()
    under_way, most = 0, 0
    both = threading.Event()

    def slow(number: int) -> None:
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        if most == 2:
            both.set()
        both.wait(0.2)
        with lock:
            under_way -= 1

    s3.fail("UploadPart", slow)
    target = writer(bucket, largest_part=largest * MIN_PART_BYTES)
    pieces = blocks(110)

    done = write(target, pieces)

    assert stored(bucket, target.key) == b"".join(pieces)
    assert len(done.parts) == 6
    assert most == at_once


@pytest.fixture
def stuck(s3: StrictS3) -> Iterator[threading.Event]:
    """An S3 whose parts wait for this event, and answer after it."""
    go_on = threading.Event()
    s3.fail("UploadPart", lambda number: go_on.wait(30))
    yield go_on
    go_on.set()


@pytest.mark.parametrize("waits_in", ["write", "complete"])
def test_a_stop_does_not_wait_for_s3(
    bucket: results.Bucket, s3: StrictS3, stuck: threading.Event, waits_in: str
) -> None:
    target = writer(bucket)
    failed: list[BaseException] = []

    def feed() -> None:
        try:
            write(target, blocks(45 if waits_in == "complete" else 400))
        except BaseException as error:
            failed.append(error)

    feeder = threading.Thread(target=feed)
    feeder.start()
    store.until(lambda: s3.calls.count("UploadPart") == 2)
    assert not failed

    target.stop(errors.CancelRequested())

    feeder.join(5)
    assert not feeder.is_alive()
    assert [type(error) for error in failed] == [errors.CancelRequested]
    target.abort()
    assert s3.uploads == {}
    stuck.set()
    # The parts that came after the end of their upload are not left either.
    store.until(lambda: s3.calls.count("AbortMultipartUpload") >= 3)
    assert platform.left_in(bucket) == []


def test_a_suspended_upload_does_not_wait_for_ever(
    bucket: results.Bucket, s3: StrictS3, stuck: threading.Event
) -> None:
    target = writer(bucket)
    for piece in blocks(50):
        target.write(piece, 1, piece)

    assert target.suspend(seconds=0.5) is None


def test_a_part_that_is_late_does_not_lose_those_before_it(
    bucket: results.Bucket, s3: StrictS3
) -> None:
    """However many behind it are safe: the upload can go on at the part before it."""
    go_on = threading.Event()

    def late(number: int) -> None:
        if number == 3:
            go_on.wait(30)

    s3.fail("UploadPart", late)
    target = writer(bucket)
    for piece in blocks(220):
        target.write(piece, 1, piece)
    store.until(lambda: target.parts >= 9)

    found = target.checkpoint()
    go_on.set()

    assert found is not None
    assert found.rows == sum(part.rows for part in found.parts)
    assert len(found.parts) == 2
    target.abort()


def test_an_object_that_has_to_be_read_for_its_checksum_can_be_stopped(
    bucket: results.Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no checksum that can be handed on: the next writer reads what it made."""
    monkeypatch.setitem(sys.modules, "rehashes", None)
    first = writer(bucket, may_suspend=True)
    for piece in blocks(50):
        first.write(piece, 1, piece)
    saved = first.suspend(seconds=30)
    assert saved is not None
    assert saved.digest is None
    second = writer(bucket, resume=saved, may_suspend=True)
    monkeypatch.setattr(
        faults,
        "point",
        lambda name: second.stop(errors.ExportTooLong()) if name.endswith("after_complete") else 0,
    )

    with pytest.raises(errors.ExportTooLong):
        write(second, blocks(10))


class TestStrictness:
    """The S3 of these tests refuses what it says it does."""

    def begin(self, bucket: results.Bucket, sizes: dict[int, int]) -> dict[str, Any]:
        name = key()
        upload_id = bucket.client.create_multipart_upload(
            Bucket=bucket.name, Key=name, ChecksumAlgorithm="SHA256"
        )["UploadId"]
        parts = []
        for number, size in sizes.items():
            body = b"x" * size
            answer = bucket.client.upload_part(
                Bucket=bucket.name, Key=name, UploadId=upload_id, PartNumber=number, Body=body,
                ChecksumSHA256=results._base64(hashlib.sha256(body).hexdigest()),
            )  # fmt: skip
            checksum = results._base64(hashlib.sha256(body).hexdigest())
            parts.append({"PartNumber": number, "ETag": answer["ETag"], "ChecksumSHA256": checksum})
        return {
            "Bucket": bucket.name,
            "Key": name,
            "UploadId": upload_id,
            "MultipartUpload": {"Parts": parts},
        }

    @pytest.mark.parametrize(
        ("sizes", "code"),
        [
            ({1: MIN_PART_BYTES - 1, 2: 1}, "EntityTooSmall"),
            ({1: MIN_PART_BYTES, 3: 1}, "InvalidRequest"),
            ({2: MIN_PART_BYTES}, "InvalidRequest"),
            ({}, "MalformedXML"),
        ],
    )
    def test_a_completion_that_aws_refuses_is_refused(
        self, bucket: results.Bucket, sizes: dict[int, int], code: str
    ) -> None:
        with pytest.raises(aws.ClientError, match=code):
            bucket.client.complete_multipart_upload(**self.begin(bucket, sizes))

    def test_parts_without_their_checksums_are_refused(self, bucket: results.Bucket) -> None:
        asked = self.begin(bucket, {1: 1})
        del asked["MultipartUpload"]["Parts"][0]["ChecksumSHA256"]

        with pytest.raises(aws.ClientError, match="InvalidRequest"):
            bucket.client.complete_multipart_upload(**asked)

    def test_an_upload_that_is_not_there_cannot_be_written_to(self, bucket: results.Bucket) -> None:
        asked = self.begin(bucket, {1: 1})
        bucket.abort(asked["Key"], asked["UploadId"])

        with pytest.raises(aws.ClientError, match="NoSuchUpload"):
            bucket.client.complete_multipart_upload(**asked)
        bucket.abort(asked["Key"], asked["UploadId"])

    def test_uploads_are_as_old_as_they_are(self, bucket: results.Bucket) -> None:
        self.begin(bucket, {1: 1})
        now = dt.datetime.now(dt.UTC)

        [old] = bucket.uploads_before(now - dt.timedelta(minutes=1))
        [young] = bucket.uploads_before(now + dt.timedelta(minutes=1))
        assert (len(old), len(young)) == (0, 1)

"""Downloads from a real HTTP server that breaks, expires and lies."""

import hashlib
import json
import random

import pytest

from jobclient import Retry, errors
from tests.unit.jobclient.scripted_server import Reply, problem, stored

CONTENT = random.Random(5).randbytes(3_000_000)


@pytest.fixture
def ticket(server):
    """Writes the download route: a ticket for each URL in turn, all for the same content."""

    def write(*urls, content=CONTENT, **changes):
        replies = [
            Reply(
                body={
                    "url": server.url + url,
                    "expires_at": "2026-01-02T03:19:05Z",
                    "filename": "flights.csv",
                    "bytes": len(content),
                    "sha256": hashlib.sha256(content).hexdigest(),
                    "content_type": "text/csv",
                }
                | changes
            )
            for url in urls or ("/bucket/object",)
        ]
        server.on("GET", "/prod/jobs/job-1/download", *replies)

    return write


def test_download_writes_the_file_and_leaves_no_part(server, client, ticket, tmp_path):
    ticket()
    server.on("GET", "/bucket/object", stored(CONTENT))
    progress = []

    done = client.download(
        "job-1", tmp_path / "out.csv", on_progress=lambda *step: progress.append(step)
    )

    assert [file.name for file in tmp_path.iterdir()] == ["out.csv"]
    assert (tmp_path / "out.csv").read_bytes() == CONTENT
    assert (done.bytes, done.resumed_from) == (len(CONTENT), 0)
    assert progress[-1] == (len(CONTENT), len(CONTENT))
    assert progress == sorted(progress)


def test_the_key_goes_to_the_api_and_never_to_s3(server, client, ticket, tmp_path):
    ticket("/bucket/object?X-Amz-Signature=a%2Fb%2Bc&X-Amz-Expires=900")
    server.on("GET", "/bucket/object", stored(CONTENT))

    client.download("job-1", tmp_path / "out.csv")

    (asked,) = server.seen("GET", "/prod/jobs/job-1/download")
    (fetched,) = server.seen("GET", "/bucket/object")
    assert asked.headers["x-api-key"] == "key-1"
    assert asked.query == {"redirect": "false"}
    assert "x-api-key" not in fetched.headers
    assert fetched.headers["accept-encoding"] == "identity"
    assert fetched.query == {"X-Amz-Signature": "a/b+c", "X-Amz-Expires": "900"}


def test_a_cut_download_goes_on_where_it_broke_off(server, client, ticket, tmp_path, fake_time):
    ticket()
    server.on(
        "GET",
        "/bucket/object",
        stored(CONTENT, cut_after=1_000_000),
        stored(CONTENT, cut_after=500_000),
        Reply(drop=True),
        Reply(status=503, body=b"<Error><Code>SlowDown</Code></Error>"),
        stored(CONTENT),
    )

    client.download("job-1", tmp_path / "out.csv")

    assert (tmp_path / "out.csv").read_bytes() == CONTENT
    requests = server.seen("GET", "/bucket/object")
    assert [r.headers.get("range") for r in requests] == [
        None,
        "bytes=1000000-",
        "bytes=1500000-",
        "bytes=1500000-",
        "bytes=1500000-",
    ]
    assert {r.headers.get("if-match") for r in requests[1:]} == {'"etag-1"'}
    assert fake_time.slept == [0.5, 0.5, 1.0, 2.0]


def test_an_expired_url_is_replaced_by_a_fresh_one_at_once(
    server, client, ticket, tmp_path, fake_time
):
    ticket("/bucket/old", "/bucket/new")
    expired = b"<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>"
    server.on(
        "GET", "/bucket/old", stored(CONTENT, cut_after=1_800_000), Reply(status=403, body=expired)
    )
    server.on("GET", "/bucket/new", stored(CONTENT))

    client.download("job-1", tmp_path / "out.csv")

    assert (tmp_path / "out.csv").read_bytes() == CONTENT
    (last,) = server.seen("GET", "/bucket/new")
    assert last.headers["range"] == "bytes=1800000-"


def test_credentials_that_ended_before_the_url_are_an_expired_url_too(
    server, client, ticket, tmp_path
):
    ticket("/bucket/old", "/bucket/new")
    server.on(
        "GET", "/bucket/old", Reply(status=400, body=b"<Error><Code>ExpiredToken</Code></Error>")
    )
    server.on("GET", "/bucket/new", stored(CONTENT))

    client.download("job-1", tmp_path / "out.csv")

    assert (tmp_path / "out.csv").read_bytes() == CONTENT


def test_a_url_that_is_never_good_ends_with_what_s3_says(server, client, ticket, tmp_path):
    ticket()
    denied = b"<Error><Code>AccessDenied</Code><Message>No such right</Message></Error>"
    server.on("GET", "/bucket/object", Reply(status=403, body=denied))

    with pytest.raises(errors.StorageRefused, match="HTTP 403: AccessDenied: No such right"):
        client.download("job-1", tmp_path / "out.csv")

    assert len(server.seen("GET", "/bucket/object")) == 4
    assert list(tmp_path.iterdir()) == []


def test_a_result_that_expires_on_the_way_says_so(server, client, ticket, tmp_path):
    ticket()
    server.on(
        "GET", "/bucket/object", Reply(status=404, body=b"<Error><Code>NoSuchKey</Code></Error>")
    )
    first = Reply(
        body={"url": server.url + "/bucket/object", "bytes": len(CONTENT), "sha256": "0" * 64}
    )
    server.on("GET", "/prod/jobs/job-1/download", first, problem(410, "result_expired"))

    with pytest.raises(errors.Gone):
        client.download("job-1", tmp_path / "out.csv")


def test_wrong_bytes_never_get_the_name_and_are_removed(server, client, ticket, tmp_path):
    ticket()
    damaged = CONTENT[:2_000_000] + b"X" + CONTENT[2_000_001:]
    server.on("GET", "/bucket/object", stored(damaged))
    (tmp_path / "out.csv").write_bytes(b"what was there before")

    with pytest.raises(errors.ChecksumMismatch, match="has been removed"):
        client.download("job-1", tmp_path / "out.csv")

    assert [file.name for file in tmp_path.iterdir()] == ["out.csv"]
    assert (tmp_path / "out.csv").read_bytes() == b"what was there before"


def test_more_bytes_than_stated_are_not_read_to_the_end(server, client, ticket, tmp_path):
    ticket(content=CONTENT[:1000])
    server.on("GET", "/bucket/object", Reply(body=CONTENT, length=False))
    progress = []

    with pytest.raises(errors.ChecksumMismatch):
        client.download(
            "job-1", tmp_path / "out.csv", on_progress=lambda done, total: progress.append(done)
        )

    assert progress[-1] < len(CONTENT) / 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("stated", [len(CONTENT) - 1, len(CONTENT) + 1])
def test_an_object_of_another_size_is_refused_before_it_is_read(
    server, client, ticket, tmp_path, stated
):
    ticket(bytes=stated)
    server.on("GET", "/bucket/object", stored(CONTENT))

    with pytest.raises(errors.ChecksumMismatch, match=f"3000000 bytes instead of {stated}"):
        client.download("job-1", tmp_path / "out.csv")

    assert len(server.seen("GET", "/bucket/object")) == 1
    assert list(tmp_path.iterdir()) == []


def test_fewer_bytes_than_stated_end_after_a_bounded_number_of_tries(
    server, client, ticket, tmp_path
):
    ticket(bytes=len(CONTENT) + 1)

    def answer(seen):
        if "range" in seen.headers:
            return Reply(status=416)
        return Reply(body=CONTENT, length=False)

    server.on("GET", "/bucket/object", answer)

    with pytest.raises(errors.StorageRefused):
        client.download("job-1", tmp_path / "out.csv")

    assert not (tmp_path / "out.csv").exists()


def test_a_call_that_was_killed_is_continued_by_the_next(server, client, ticket, tmp_path):
    ticket()
    server.on("GET", "/bucket/object", stored(CONTENT))
    (tmp_path / "out.csv.part").write_bytes(CONTENT[:2_500_000])

    done = client.download("job-1", tmp_path / "out.csv")

    assert (tmp_path / "out.csv").read_bytes() == CONTENT
    assert done.resumed_from == 2_500_000
    assert server.seen("GET", "/bucket/object")[0].headers["range"] == "bytes=2500000-"


def test_a_part_file_that_is_complete_needs_no_bytes(server, client, ticket, tmp_path):
    ticket()
    (tmp_path / "out.csv.part").write_bytes(CONTENT)

    client.download("job-1", tmp_path / "out.csv")

    assert (tmp_path / "out.csv").read_bytes() == CONTENT
    assert server.seen("GET", "/bucket/object") == []


@pytest.mark.parametrize("size", [10, len(CONTENT), len(CONTENT) + 1])
def test_a_part_file_of_another_result_is_started_over(server, client, ticket, tmp_path, size):
    ticket()
    server.on("GET", "/bucket/object", stored(CONTENT))
    (tmp_path / "out.csv.part").write_bytes(b"z" * size)

    done = client.download("job-1", tmp_path / "out.csv")

    assert (tmp_path / "out.csv").read_bytes() == CONTENT
    assert done.resumed_from == 0


def test_an_object_that_changed_meanwhile_is_started_over(server, client, ticket, tmp_path):
    ticket()
    server.on(
        "GET",
        "/bucket/object",
        stored(b"y" * len(CONTENT), etag='"etag-0"', cut_after=1_000_000),
        stored(CONTENT),
    )

    client.download("job-1", tmp_path / "out.csv")

    assert (tmp_path / "out.csv").read_bytes() == CONTENT


def test_a_fresh_url_for_other_bytes_is_started_over(server, client, ticket, tmp_path):
    ticket()
    new = {"bytes": 6, "sha256": hashlib.sha256(b"second").hexdigest()}
    server.on(
        "GET",
        "/prod/jobs/job-1/download",
        Reply(body={"url": f"{server.url}/old", "bytes": 5, "sha256": "0" * 64}),
        Reply(body={"url": f"{server.url}/new", **new}),
    )
    server.on("GET", "/old", stored(b"first", cut_after=3), Reply(status=403))
    server.on("GET", "/new", stored(b"second", etag='"etag-2"'))

    client.download("job-1", tmp_path / "out.csv")

    assert (tmp_path / "out.csv").read_bytes() == b"second"


def test_a_server_without_ranges_is_started_over(server, client, ticket, tmp_path):
    ticket()
    server.on("GET", "/bucket/object", stored(CONTENT, cut_after=1_000_000), Reply(body=CONTENT))

    client.download("job-1", tmp_path / "out.csv")

    assert (tmp_path / "out.csv").read_bytes() == CONTENT


def test_a_range_other_than_the_one_asked_for_is_not_appended(server, client, ticket, tmp_path):
    ticket()
    wrong = Reply(status=206, body=CONTENT[5:], headers={"Content-Range": "bytes 5-9/3000000"})
    server.on("GET", "/bucket/object", stored(CONTENT, cut_after=1_000_000), wrong, stored(CONTENT))

    client.download("job-1", tmp_path / "out.csv")

    assert (tmp_path / "out.csv").read_bytes() == CONTENT


def test_packed_bytes_are_kept_as_they_are_stored(server, client, ticket, tmp_path):
    ticket()
    server.on("GET", "/bucket/object", Reply(body=CONTENT, headers={"Content-Encoding": "gzip"}))

    client.download("job-1", tmp_path / "out.csv.gz")

    assert (tmp_path / "out.csv.gz").read_bytes() == CONTENT


def test_an_empty_result_is_an_empty_file(server, client, ticket, tmp_path):
    ticket(content=b"")

    client.download("job-1", tmp_path / "out.csv")

    assert (tmp_path / "out.csv").read_bytes() == b""


@pytest.mark.parametrize(
    ("stated", "name"),
    [
        ("flights-job-1.csv", "flights-job-1.csv"),
        ("../../etc/passwd", "passwd"),
        ("..\\..\\evil.csv", "evil.csv"),
        ("/abs/x.csv", "x.csv"),
        ("a\nb\x1b[31m.csv", "ab[31m.csv"),
        ("..", "result"),
        ("", "result"),
    ],
)
def test_into_a_folder_under_the_stated_name_that_cannot_leave_it(
    server, client, ticket, tmp_path, stated, name
):
    ticket(filename=stated)
    server.on("GET", "/bucket/object", stored(CONTENT))

    done = client.download("job-1", tmp_path)

    assert done.path == tmp_path / name
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_tries_without_progress_run_out_and_the_part_stays(server, make_client, ticket, tmp_path):
    ticket()
    server.on("GET", "/bucket/object", stored(CONTENT, cut_after=1_000_000), Reply(drop=True))
    client = make_client(retry=Retry(attempts=2))

    with pytest.raises(errors.TransportError, match="broke off"):
        client.download("job-1", tmp_path / "out.csv")

    assert (tmp_path / "out.csv.part").read_bytes() == CONTENT[:1_000_000]


def test_a_url_that_is_none_is_an_error_of_ours(server, client, ticket, tmp_path):
    ticket(url="not a url")

    with pytest.raises(errors.TransportError):
        client.download("job-1", tmp_path / "out.csv")


def test_a_failed_job_has_no_download_and_says_why(server, client, tmp_path):
    server.on("GET", "/prod/jobs/job-1/download", problem(409, "result_not_ready"))
    failed = {"id": "job-1", "status": "failed", "error": {"code": "x", "message": "Too large"}}
    server.on("GET", "/prod/jobs/job-1", Reply(body=failed))

    with pytest.raises(errors.JobFailed, match="Too large"):
        client.download("job-1", tmp_path / "out.csv")

    assert list(tmp_path.iterdir()) == []


def test_a_running_job_has_no_download_yet(server, client, tmp_path):
    server.on("GET", "/prod/jobs/job-1/download", problem(409, "result_not_ready"))
    server.on("GET", "/prod/jobs/job-1", Reply(body={"id": "job-1", "status": "running"}))

    with pytest.raises(errors.Conflict):
        client.download("job-1", tmp_path / "out.csv")


# Manifests


def manifest_of(content, **changes):
    stated = {
        "manifest_version": 1,
        "job_id": "job-1",
        "format": "csv",
        "compression": "none",
        "rows": 0,
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "parts": [],
    }
    return json.dumps(stated | changes).encode()


@pytest.fixture
def manifest(server, ticket):
    """Writes the route of the manifest, after answers that are given."""

    def write(*replies):
        ticket(manifest_url=f"{server.url}/bucket/manifest?X-Amz-Signature=a")
        server.on("GET", "/bucket/manifest", *replies)

    return write


def test_a_manifest_is_saved_as_it_is_stored(server, client, manifest, tmp_path):
    manifest(Reply(body=manifest_of(CONTENT)))

    client.download_manifest("job-1", tmp_path / "out.json")

    assert [file.name for file in tmp_path.iterdir()] == ["out.json"]
    assert (tmp_path / "out.json").read_bytes() == manifest_of(CONTENT)
    (fetched,) = server.seen("GET", "/bucket/manifest")
    assert "x-api-key" not in fetched.headers


def test_a_manifest_that_s3_refuses_is_asked_for_again_with_a_new_url(
    server, client, manifest, tmp_path
):
    manifest(Reply(status=403, body=b"<Code>AccessDenied</Code>"), Reply(body=manifest_of(CONTENT)))

    client.download_manifest("job-1", tmp_path / "out.json")

    assert len(server.seen("GET", "/prod/jobs/job-1/download")) == 2
    assert (tmp_path / "out.json").exists()


def test_a_manifest_that_s3_keeps_refusing_is_an_error(client, manifest, tmp_path):
    manifest(Reply(status=403, body=b"<Code>AccessDenied</Code><Message>No</Message>"))

    with pytest.raises(errors.StorageRefused, match="AccessDenied: No"):
        client.download_manifest("job-1", tmp_path / "out.json")

    assert list(tmp_path.iterdir()) == []


def test_a_manifest_of_another_file_is_not_saved(client, manifest, tmp_path):
    manifest(Reply(body=manifest_of(CONTENT, sha256="0" * 64)))

    with pytest.raises(errors.ChecksumMismatch, match="another file"):
        client.download_manifest("job-1", tmp_path / "out.json")

    assert list(tmp_path.iterdir()) == []


def test_what_is_no_manifest_is_not_saved(client, manifest, tmp_path):
    manifest(Reply(body=b"<html>"))

    with pytest.raises(errors.UnexpectedAnswer, match="no manifest"):
        client.download_manifest("job-1", tmp_path / "out.json")

    assert list(tmp_path.iterdir()) == []


def test_a_platform_without_manifests_is_told_apart(client, ticket, tmp_path):
    ticket()

    with pytest.raises(errors.UnexpectedAnswer, match="does not hand out manifests"):
        client.download_manifest("job-1", tmp_path / "out.json")

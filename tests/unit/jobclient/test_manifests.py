"""Verification of files against manifests, at every cut and with every kind of damage."""

import gzip
import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobclient import errors, manifests, models

ROWS = [b'id,text\n1,"a\nb"\n', b'2,"say ""hi""\n"\n', b"3,\n4,x\n"]


def manifest_of(parts, *, rows=(1, 1, 2), format="csv", compression=None, **changes):
    whole = b"".join(parts)
    return models.Manifest.model_validate(
        {
            "format": format,
            "compression": compression,
            "rows": sum(rows),
            "bytes": len(whole),
            "sha256": hashlib.sha256(whole).hexdigest(),
            "parts": [
                {
                    "number": number,
                    "rows": count,
                    "bytes": len(part),
                    "sha256": hashlib.sha256(part).hexdigest(),
                }
                for number, (part, count) in enumerate(zip(parts, rows, strict=True), start=1)
            ],
            "template": "flights",
        }
        | changes
    )


@pytest.fixture
def file(tmp_path):
    return tmp_path / "result"


def problems(file, manifest):
    with pytest.raises(errors.ManifestMismatch) as caught:
        manifests.verify(file, manifest)
    return caught.value.problems


def test_a_right_file_passes_with_its_facts(file):
    file.write_bytes(b"".join(ROWS))
    progress = []

    verified = manifests.verify(
        file, manifest_of(ROWS), on_progress=lambda *step: progress.append(step)
    )

    assert (verified.rows, verified.parts) == (4, 3)
    assert progress[-1] == (verified.bytes, verified.bytes)


def test_gzip_members_are_read_one_after_the_other(file):
    parts = [gzip.compress(part) for part in ROWS]
    file.write_bytes(b"".join(parts))

    assert manifests.verify(file, manifest_of(parts, compression="gzip")).rows == 4


def test_a_gzip_file_larger_than_a_block_is_counted_whole(file):
    text = b"x\n" + b"12345678901234567\n" * 300_000
    parts = [gzip.compress(text, 1), gzip.compress(b"", 1), gzip.compress(b"9\n" * 524_288, 1)]
    file.write_bytes(b"".join(parts))
    manifest = manifest_of(parts, rows=(300_000, 0, 524_288), compression="gzip")

    assert manifests.verify(file, manifest).rows == 824_288


def test_csv_for_excel_is_counted_as_csv(file):
    parts = [b'\xef\xbb\xbfid,text\r\n1,"a\r\nb"\r\n2,c\r\n']
    file.write_bytes(parts[0])

    assert manifests.verify(file, manifest_of(parts, rows=(2,), format="csv-excel")).rows == 2


def test_lines_of_json_have_no_header(file):
    parts = [b'{"a":"\\n"}\n{"a":"x\\"y"}\n']
    file.write_bytes(parts[0])

    assert manifests.verify(file, manifest_of(parts, rows=(2,), format="jsonl")).rows == 2


def test_a_last_row_without_newline_counts(file):
    parts = [b"id\n1\n2"]
    file.write_bytes(parts[0])

    assert manifests.verify(file, manifest_of(parts, rows=(2,))).rows == 2


def test_a_format_of_a_later_version_is_checked_but_not_counted(file):
    parts = [b"PAR1...."]
    file.write_bytes(parts[0])

    assert manifests.verify(file, manifest_of(parts, rows=(7,), format="parquet")).rows is None


@given(
    st.lists(st.tuples(st.text('a"\n,\r é'), st.text('b"\n,')), max_size=8),
    st.integers(1, 9),
)
def test_rows_are_counted_at_every_cut(values, size):
    def quoted(text):
        return '"' + text.replace('"', '""') + '"'

    body = "a,b\n" + "".join(f"{quoted(one)},{quoted(two)}\n" for one, two in values)
    content = body.encode()
    counter = manifests._RowCounter("csv", "none")
    for start in range(0, len(content), size):
        counter.feed(content[start : start + size])

    assert counter.finish() == len(values)


@given(st.lists(st.binary(max_size=40), min_size=1, max_size=5), st.integers(1, 30))
def test_gzip_is_read_at_every_cut(members, size):
    content = b"".join(gzip.compress(member, mtime=0) for member in members)
    counter = manifests._RowCounter("jsonl", "gzip")
    for start in range(0, len(content), size):
        counter.feed(content[start : start + size])
    whole = b"".join(members)
    lines = whole.count(b"\n") + (bool(whole) and not whole.endswith(b"\n"))

    assert counter.finish() == lines
    assert counter.damage is None


def test_a_changed_byte_is_found_in_its_part(file):
    whole = bytearray(b"".join(ROWS))
    whole[-2] ^= 1
    file.write_bytes(whole)

    found = problems(file, manifest_of(ROWS))

    assert len(found) == 2
    assert found[0].startswith(f"part 3 (bytes {len(ROWS[0] + ROWS[1])} to {len(whole) - 1})")
    assert found[1].startswith("SHA-256 is")


def test_a_file_cut_short_says_what_is_missing(file):
    file.write_bytes(b"".join(ROWS)[:-3])

    found = problems(file, manifest_of(ROWS))

    assert found[0] == "part 3: the file ends 3 bytes before the part"
    assert f"{len(b''.join(ROWS)) - 3} bytes, not {len(b''.join(ROWS))}" in found


def test_bytes_after_the_end_are_found(file):
    file.write_bytes(b"".join([*ROWS, b"5,y\n"]))

    found = problems(file, manifest_of(ROWS))

    assert "5 rows, not 4" in found


def test_rows_that_the_manifest_does_not_have_are_found(file):
    file.write_bytes(b"".join(ROWS))

    assert problems(file, manifest_of(ROWS, rows=(1, 1, 3))) == ["4 rows, not 5"]


def test_a_manifest_that_contradicts_itself_is_none(file):
    file.write_bytes(b"".join(ROWS))

    assert problems(file, manifest_of(ROWS).model_copy(update={"rows": 9})) == [
        "the manifest contradicts itself: its parts have 4 rows, not 9",
        "4 rows, not 9",
    ]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (gzip.compress(b"id\n1\n")[:-6], "ends in the middle"),
        (b"id\n1\n", "cannot be decompressed: Error -3"),
        (gzip.compress(b"id\n1\n") + b"rubbish", "cannot be decompressed"),
    ],
    ids=["cut", "not packed", "rubbish behind"],
)
def test_damaged_gzip_is_said_to_be_damaged(file, content, reason):
    file.write_bytes(content)

    (found,) = problems(file, manifest_of([content], rows=(1,), compression="gzip"))

    assert reason in found


def test_csv_that_ends_inside_quotes_is_damaged(file):
    content = b'id\n"1\n'
    file.write_bytes(content)

    assert problems(file, manifest_of([content], rows=(1,))) == [
        "is not CSV: it ends inside quotation marks"
    ]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not a manifest"),
        ("[]", "not a manifest"),
        (json.dumps({"format": "csv", "rows": 1, "bytes": 1}), "sha256: Field required"),
        (
            json.dumps({"format": "csv", "rows": -1, "bytes": 1, "sha256": ""}),
            "rows: Input should be greater",
        ),
    ],
)
def test_what_is_no_manifest_is_said_to_be_none(tmp_path, text, reason):
    path = tmp_path / "m.json"
    path.write_text(text)

    with pytest.raises(errors.ManifestUnreadable, match=reason):
        manifests.load(path)

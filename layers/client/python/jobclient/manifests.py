"""Checks a downloaded file against its manifest, offline: size, SHA-256, each part, rows."""

import dataclasses
import hashlib
import zlib
from collections.abc import Callable
from pathlib import Path

import pydantic

from jobclient import errors, models

_BLOCK = 1024 * 1024


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verified:
    """A file that is what its manifest says."""

    bytes: int
    sha256: str
    parts: int
    rows: int | None
    """None: not counted, because this version cannot read the format or the compression."""


def load(path: Path) -> models.Manifest:
    """Reads a manifest; raises `ManifestUnreadable`."""
    try:
        return models.Manifest.model_validate_json(path.read_bytes())
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(step) for step in first["loc"])
        raise errors.ManifestUnreadable(
            f"{path} is not a manifest of a result: {where + ': ' if where else ''}{first['msg']}"
        ) from error


def verify(
    path: Path,
    manifest: models.Manifest,
    *,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Verified:
    """Reads the file once and raises `ManifestMismatch` with everything that differs."""
    problems = _contradictions(manifest)
    whole = hashlib.sha256()
    size = 0
    counter = _RowCounter.for_manifest(manifest)
    with path.open("rb") as file:
        for part in manifest.parts:
            digest = hashlib.sha256()
            left = part.bytes
            while left and (block := file.read(min(left, _BLOCK))):
                left -= len(block)
                size += len(block)
                digest.update(block)
                whole.update(block)
                counter.feed(block)
                on_progress(size, manifest.bytes)
            if left:
                problems.append(f"part {part.number}: the file ends {left} bytes before the part")
            elif digest.hexdigest() != part.sha256:
                problems.append(
                    f"part {part.number} (bytes {size - part.bytes} to {size - 1}): SHA-256 is "
                    f"{digest.hexdigest()}, not {part.sha256}"
                )
        while block := file.read(_BLOCK):
            size += len(block)
            whole.update(block)
            counter.feed(block)
            on_progress(size, manifest.bytes)
    if size != manifest.bytes:
        problems.append(f"{size} bytes, not {manifest.bytes}")
    if whole.hexdigest() != manifest.sha256:
        problems.append(f"SHA-256 is {whole.hexdigest()}, not {manifest.sha256}")
    rows = counter.finish()
    if counter.damage:
        problems.append(counter.damage)
    elif rows not in (None, manifest.rows):
        problems.append(f"{rows} rows, not {manifest.rows}")
    if problems:
        raise errors.ManifestMismatch(str(path), problems)
    return Verified(bytes=size, sha256=manifest.sha256, parts=len(manifest.parts), rows=rows)


def _contradictions(manifest: models.Manifest) -> list[str]:
    if not manifest.parts:
        return []
    problems = []
    for fact in ("bytes", "rows"):
        stated, total = getattr(manifest, fact), sum(getattr(p, fact) for p in manifest.parts)
        if stated != total:
            problems.append(
                f"the manifest contradicts itself: its parts have {total} {fact}, not {stated}"
            )
    return problems


class _RowCounter:
    """Counts the rows in the bytes of a file, at any cut, with memory for one block."""

    @classmethod
    def for_manifest(cls, manifest: models.Manifest) -> "_RowCounter":
        return cls(manifest.format, manifest.compression or "none")

    def __init__(self, format: str, compression: str) -> None:
        self._csv = format in ("csv", "csv-excel")
        self._gzip = compression == "gzip"
        self._readable = (self._csv or format == "jsonl") and compression in ("none", "gzip")
        self._inflater = zlib.decompressobj(wbits=31)
        self._in_member = False
        self._lines = 0
        self._quoted = False
        self._last = b"\n"
        self.damage: str | None = None

    def feed(self, block: bytes) -> None:
        if not self._readable or self.damage:
            return
        if not self._gzip:
            self._count(block)
            return
        try:
            self._inflate(block)
        except zlib.error as error:
            self.damage = f"cannot be decompressed: {error}"

    def finish(self) -> int | None:
        """The rows, without the header; None if they could not be counted."""
        if self._in_member and not self.damage:
            self.damage = "cannot be decompressed: it ends in the middle of a gzip member"
        if not self._readable or self.damage:
            return None
        if self._quoted:
            self.damage = "is not CSV: it ends inside quotation marks"
            return None
        lines = self._lines + (self._last != b"\n")
        return max(0, lines - 1) if self._csv else lines

    def _inflate(self, data: bytes) -> None:
        # Each part of a result is a gzip member of its own.
        while True:
            out = self._inflater.decompress(data, _BLOCK)
            self._count(out)
            if self._inflater.eof:
                data = self._inflater.unused_data
                self._inflater = zlib.decompressobj(wbits=31)
                self._in_member = bool(data)
                if not data:
                    return
            else:
                data = self._inflater.unconsumed_tail
                self._in_member = True
                if not data and len(out) < _BLOCK:
                    return

    def _count(self, text: bytes) -> None:
        if not text:
            return
        self._last = text[-1:]
        if self._csv and (self._quoted or b'"' in text):
            # A newline between quotation marks belongs to a value; a doubled mark opens and
            # closes, so it changes nothing.
            pieces = text.split(b'"')
            self._lines += sum(piece.count(b"\n") for piece in pieces[self._quoted :: 2])
            self._quoted ^= len(pieces) % 2 == 0
        else:
            self._lines += text.count(b"\n")

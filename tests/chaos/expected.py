"""The bytes that a result has to have: the database's own COPY of the same query."""

import contextlib
import gzip
import hashlib
import json
import pathlib
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pg8000.native
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

import templates
from infra.local import postgres
from infra.local.errors import LocalError
from jobplatform import csvfile, jobs, templating

OWN_TEMPLATES = pathlib.Path(__file__).with_name("templates")
_PATIENCE_SECONDS = 60.0


@contextlib.contextmanager
def own_templates() -> Iterator[None]:
    """Has this package's templates among those that this process knows."""
    templates.__path__.append(str(OWN_TEMPLATES))
    try:
        yield
    finally:
        templates.__path__.remove(str(OWN_TEMPLATES))


class _Hash:
    def __init__(self) -> None:
        self.digest = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        return len(data)


class Expected:
    """SHA-256 of the CSV of a template with parameters, each made once."""

    def __init__(self, database_url: str) -> None:
        self._url = database_url
        self._known: dict[str, str] = {}
        self._lock = threading.Lock()

    def sha256(self, template: str, parameters: dict[str, Any]) -> str:
        name = json.dumps([template, parameters], sort_keys=True)
        with self._lock:
            if name not in self._known:
                self._known[name] = self._made(template, parameters)
            return self._known[name]

    def _made(self, name: str, parameters: dict[str, Any]) -> str:
        """Asked while the database is down, it waits until that is back."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while True:
            try:
                return self._make(name, parameters)
            except (pg8000.native.InterfaceError, pg8000.native.DatabaseError, LocalError):
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)

    def _make(self, name: str, parameters: dict[str, Any]) -> str:
        template = templating.get(name)
        params = template.parse(parameters)
        connection = postgres.connect(self._url)
        sink = _Hash()
        try:
            connection.run("SET timezone = 'UTC'")
            if template.query is not None:
                query = _literal(template.query(params))
                connection.run(f"COPY ({query}) TO STDOUT (FORMAT csv, HEADER)", stream=sink)
            else:
                # A generator has no COPY: its own rows, read over a plain connection.
                assert template.rows is not None

                def read(statement: sa.Select[Any]) -> Iterator[Sequence[Any]]:
                    yield from connection.run(_literal(statement))

                rows = template.rows(params, read)
                for chunk, _ in csvfile.encode(rows, template.columns, jobs.ResultFormat.CSV):
                    sink.write(chunk)
        finally:
            connection.close()
        return sink.digest.hexdigest()


def unpacked_sha256(content: bytes, compression: str) -> str:
    return hashlib.sha256(
        gzip.decompress(content) if compression == "gzip" else content
    ).hexdigest()


def _literal(statement: sa.Select[Any]) -> str:
    """SQLAlchemy's own rendering, so that none of the platform's code is in the way."""
    dialect = postgresql.dialect()
    dialect.identifier_preparer._double_percents = False
    compiled = statement.compile(dialect=dialect, compile_kwargs={"literal_binds": True})
    return str(compiled)

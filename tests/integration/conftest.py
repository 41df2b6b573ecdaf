"""An S3 as strict as AWS, and sessions on the adopter's database, as an export opens them."""

from collections.abc import Iterator

import pg8000.native
import pytest

from infra.local import postgres
from jobplatform import database, results, settings, sqltext
from tests.helpers import reports
from tests.helpers.s3 import StrictS3, harden


@pytest.fixture(scope="session")
def plain_data(server: postgres.LocalPostgres) -> settings.DataDatabaseSettings:
    """The adopter's database, for tests that need none of its tables."""
    return settings.DataDatabaseSettings(url=server.url("data"))


@pytest.fixture(scope="session")
def session(plain_data: settings.DataDatabaseSettings) -> Iterator[pg8000.native.Connection]:
    """A connection with the settings of an export, kept for all tests that only read."""
    connection = database.connect(plain_data, application_name="tests", **sqltext.SESSION)
    yield connection
    connection.close()


@pytest.fixture
def bucket(bucket: results.Bucket) -> results.Bucket:
    """The same bucket behind a client that refuses what AWS refuses."""
    harden(bucket.client)
    return bucket


@pytest.fixture
def s3(bucket: results.Bucket) -> StrictS3:
    return harden(bucket.client)


@pytest.fixture
def backends(plain_data: settings.DataDatabaseSettings) -> Iterator[reports.Backends]:
    """What exports do in the adopter's database, and the function that raises errors for them."""
    found = reports.Backends(plain_data)
    found.run(reports.RAISE)
    yield found
    found.close()


@pytest.fixture
def templates(monkeypatch: pytest.MonkeyPatch, backends: reports.Backends) -> None:
    """The templates of `reports` in the catalogue."""
    reports.install(monkeypatch)

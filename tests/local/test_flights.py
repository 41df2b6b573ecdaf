from collections.abc import Iterator

import pg8000.native
import pytest

from infra.local import flights
from infra.local.errors import LocalError
from infra.local.postgres import LocalPostgres, connect


@pytest.fixture
def empty_database(server: LocalPostgres) -> Iterator[str]:
    connection = connect(server.url())
    try:
        connection.run("CREATE DATABASE flights_test")
        yield server.url("flights_test")
        connection.run("DROP DATABASE flights_test")
    finally:
        connection.close()


def _query(url: str, statement: str) -> list[list[object]]:
    connection = connect(url)
    try:
        rows: list[list[object]] = connection.run(statement)
        return rows
    finally:
        connection.close()


def test_all_flights_are_loaded_with_their_types_in_the_order_of_the_file(
    empty_database: str,
) -> None:
    assert flights.load(empty_database) == 336_776

    assert _query(empty_database, "SELECT min(id), max(id), count(*) FROM flights") == [
        [1, 336_776, 336_776]
    ]
    assert _query(
        empty_database,
        "SELECT carrier, flight, dep_delay, time_hour AT TIME ZONE 'UTC' = '2013-01-01 10:00'"
        " FROM flights WHERE id = 1",
    ) == [["UA", 1545, 2, True]]
    missing = "SELECT count(*) FROM flights WHERE dep_time IS NULL"
    assert _query(empty_database, missing) == [[8255]]
    assert _query(empty_database, "SELECT name FROM airlines WHERE carrier = 'UA'") == [
        ["United Air Lines Inc."]
    ]
    assert _query(empty_database, "SELECT count(*) FROM airports") == [[1458]]


def test_loading_again_changes_nothing(empty_database: str) -> None:
    flights.load(empty_database)
    before = _query(empty_database, "SELECT pg_relation_filenode('flights')")

    assert flights.load(empty_database) == 336_776

    assert _query(empty_database, "SELECT pg_relation_filenode('flights')") == before


def test_a_table_of_somebody_else_is_left_alone(empty_database: str) -> None:
    connection: pg8000.native.Connection = connect(empty_database)
    connection.run("CREATE TABLE flights (anything text)")
    connection.close()

    with pytest.raises(LocalError, match=r"has 0 rows and should have 336,776"):
        flights.load(empty_database)

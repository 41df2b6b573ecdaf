"""Statements that go out together: one wait each, and never half of what belongs together."""

import datetime as dt
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import pg8000.core
import pytest
import sqlalchemy as sa
from sqlalchemy import exc

from jobplatform import database, job_store, operator_store, pipelining, settings, tables


@pytest.fixture
def engine(migrated: settings.DatabaseSettings) -> Iterator[sa.Engine]:
    made = database.create_engine(migrated, application_name="tests")
    with made.begin() as conn:
        conn.exec_driver_sql("CREATE TABLE noted (word text PRIMARY KEY, number integer)")
    yield made
    with made.begin() as conn:
        conn.exec_driver_sql("DROP TABLE noted")
    made.dispose()


@pytest.fixture
def packets(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One entry for each time that something is sent and its answer waited for."""
    sent: list[str] = []
    flush = pg8000.core._flush

    def counted(sock: Any) -> None:
        sent.append("packet")
        flush(sock)

    monkeypatch.setattr(pg8000.core, "_flush", counted)
    return sent


_NOTE = sa.text("INSERT INTO noted (word, number) VALUES (:word, :number)")


def words(engine: sa.Engine) -> list[str]:
    with engine.begin() as conn:
        return list(conn.scalars(sa.text("SELECT word FROM noted ORDER BY word")))


def driver(conn: sa.Connection) -> pipelining.Connection:
    found = conn.connection.driver_connection
    assert isinstance(found, pipelining.Connection)
    return found


def test_a_transaction_of_one_statement_waits_twice(engine: sa.Engine, packets: list[str]) -> None:
    words(engine)
    packets.clear()

    with database.client_transaction(engine, uuid.uuid4()) as conn:
        conn.execute(sa.select(tables.jobs.c.id))

    assert len(packets) == 2


def test_a_transaction_of_a_single_statement_waits_once(
    engine: sa.Engine, packets: list[str]
) -> None:
    words(engine)
    packets.clear()

    with database.transaction(engine, single=True) as conn:
        assert conn.execute(_NOTE, {"word": "kept", "number": 1}).rowcount == 1
    with database.client_transaction(engine, uuid.uuid4(), single=True) as conn:
        assert conn.scalar(sa.text("SELECT current_user")) == tables.CLIENT_ROLE

    assert len(packets) == 2
    assert words(engine) == ["kept"]
    with engine.begin() as conn:
        assert conn.scalar(sa.text("SELECT current_user")) != tables.CLIENT_ROLE


def test_what_was_committed_with_its_statement_stays(engine: sa.Engine) -> None:
    def fail_afterwards() -> None:
        with database.transaction(engine, single=True) as conn:
            conn.execute(_NOTE, {"word": "kept", "number": 1})
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_afterwards()

    assert words(engine) == ["kept"]


@pytest.mark.parametrize("statement", ["SELECT current_user", "SELECT current_user, 'a;b'"])
def test_the_role_holds_for_a_single_statement_without_parameters(
    engine: sa.Engine, statement: str
) -> None:
    with database.client_transaction(engine, uuid.uuid4(), single=True) as conn:
        assert conn.exec_driver_sql(statement).one()[0] == tables.CLIENT_ROLE
    with engine.begin() as conn:
        assert conn.exec_driver_sql(statement).one()[0] != tables.CLIENT_ROLE


@pytest.mark.parametrize("word", ["after", None])
def test_a_statement_after_the_last_one_is_an_error(engine: sa.Engine, word: str | None) -> None:
    """It would run in a transaction of its own, without the role that its client has."""
    another = _NOTE if word else sa.text("INSERT INTO noted VALUES ('after', 1)")
    with database.client_transaction(engine, uuid.uuid4(), single=True) as conn:
        conn.scalar(sa.text("SELECT current_user"))
        with pytest.raises(exc.ProgrammingError, match="ended"):
            conn.execute(another, {"word": word, "number": 1} if word else None)

    assert words(engine) == []


@pytest.mark.parametrize("deferred", [True, False])
def test_a_single_statement_that_fails_commits_nothing(engine: sa.Engine, deferred: bool) -> None:
    with engine.begin() as conn:
        conn.exec_driver_sql(
            "ALTER TABLE noted ADD CONSTRAINT one_number UNIQUE (number) DEFERRABLE"
            f" INITIALLY {'DEFERRED' if deferred else 'IMMEDIATE'}"
        )
        conn.execute(_NOTE, {"word": "once", "number": 1})
    with (
        pytest.raises(exc.IntegrityError, match="one_number"),
        database.transaction(engine, single=True) as conn,
    ):
        conn.execute(_NOTE, {"word": "twice", "number": 1})
    with database.transaction(engine, single=True) as conn:
        conn.execute(_NOTE, {"word": "after", "number": 2})

    assert words(engine) == ["after", "once"]


def test_all_before_the_last_statement_is_committed_with_it(
    engine: sa.Engine, packets: list[str]
) -> None:
    words(engine)
    packets.clear()

    with database.transaction(engine) as conn:
        conn.execute(_NOTE, {"word": "first", "number": 1})
        database.commit_with_next(conn)
        conn.execute(_NOTE, {"word": "second", "number": 2})

    assert len(packets) == 2
    assert words(engine) == ["first", "second"]


def test_the_last_statement_may_have_no_parameters(engine: sa.Engine, packets: list[str]) -> None:
    words(engine)
    packets.clear()

    with database.transaction(engine) as conn:
        conn.execute(_NOTE, {"word": "first", "number": 1})
        database.commit_with_next(conn)
        conn.exec_driver_sql("INSERT INTO noted VALUES ('second', 2)")
        with pytest.raises(exc.ProgrammingError, match="ended"):
            conn.exec_driver_sql("INSERT INTO noted VALUES ('third', 3)")

    assert len(packets) == 2
    assert words(engine) == ["first", "second"]


def test_a_transaction_without_a_statement_sends_nothing(
    engine: sa.Engine, packets: list[str]
) -> None:
    words(engine)
    packets.clear()

    with database.client_transaction(engine, uuid.uuid4()):
        pass

    assert packets == []
    assert words(engine) == []


def test_what_is_committed_stays_and_what_is_rolled_back_is_gone(engine: sa.Engine) -> None:
    with engine.begin() as conn:
        assert conn.execute(_NOTE, {"word": "kept", "number": 1}).rowcount == 1
    with engine.connect() as conn:
        conn.execute(_NOTE, {"word": "dropped", "number": 2})
        conn.rollback()

    assert words(engine) == ["kept"]


def test_an_error_is_raised_by_its_statement_and_the_connection_goes_on(
    engine: sa.Engine,
) -> None:
    with engine.begin() as conn:
        conn.execute(_NOTE, {"word": "once", "number": 1})
    with engine.connect() as conn:
        conn.execute(_NOTE, {"word": "before", "number": 2})
        with pytest.raises(exc.IntegrityError, match="noted_pkey"):
            conn.execute(_NOTE, {"word": "once", "number": 3})
        conn.rollback()
        conn.execute(_NOTE, {"word": "after", "number": 4})
        conn.commit()

    assert words(engine) == ["after", "once"]


@pytest.mark.parametrize("parameters", [{"word": "never", "number": 1}, None])
def test_nothing_is_done_after_a_deferred_statement_that_fails(
    engine: sa.Engine, parameters: dict[str, Any] | None
) -> None:
    statement = _NOTE if parameters else sa.text("INSERT INTO noted VALUES ('never', 1)")
    with engine.connect() as conn:
        driver(conn).defer("SET LOCAL ROLE there_is_no_such_role")
        with pytest.raises(exc.DBAPIError, match="there_is_no_such_role"):
            conn.execute(statement, parameters)

    assert words(engine) == []


def test_the_role_holds_for_the_transaction_and_no_longer(engine: sa.Engine) -> None:
    who = sa.text("SELECT current_user")

    with database.client_transaction(engine, uuid.uuid4()) as conn:
        assert conn.scalar(who) == tables.CLIENT_ROLE
        assert conn.scalar(who) == tables.CLIENT_ROLE
    with engine.begin() as conn:
        assert conn.scalar(who) == "platform"


def test_several_statements_in_one_text_come_after_what_was_deferred(engine: sa.Engine) -> None:
    with engine.begin() as conn:
        driver(conn).defer("SET LOCAL application_name = 'deferred'")
        conn.exec_driver_sql(
            "INSERT INTO noted VALUES (current_setting('application_name'), 1);"
            "INSERT INTO noted VALUES ('second', 2)"
        )

    assert words(engine) == ["deferred", "second"]


@pytest.mark.parametrize(
    "value",
    [
        None,
        "",
        "it's %s, 100%, $1, :name and Ünïcödé 日本",
        17,
        2.5,
        True,
        b"\x00\xff",
        uuid.UUID(int=5),
        dt.datetime(2026, 1, 31, 9, tzinfo=dt.UTC),
        [1, None, 3],
    ],
)
def test_values_come_back_as_they_were(engine: sa.Engine, value: Any) -> None:
    type_ = sa.ARRAY(sa.Integer) if isinstance(value, list) else sa.literal(value).type
    kind = sa.Text() if value is None else type_

    with engine.begin() as conn:
        found = conn.scalar(
            sa.select(sa.cast(sa.bindparam("value", type_=kind), kind)), {"value": value}
        )

    assert found == value


def test_a_percent_sign_of_the_statement_is_kept(engine: sa.Engine) -> None:
    with engine.begin() as conn:
        found = conn.exec_driver_sql("SELECT 17 %% 5, 'a%s', %s LIKE 'a%%'", ("abc",)).one()

    assert tuple(found) == (2, "a%s", True)


def test_rows_changed_are_counted(engine: sa.Engine) -> None:
    with engine.begin() as conn:
        for number in range(3):
            conn.execute(_NOTE, {"word": f"word {number}", "number": number})
    with engine.begin() as conn:
        changed = conn.execute(sa.text("UPDATE noted SET number = :n"), {"n": 0})

    assert changed.rowcount == 3


def test_a_connection_that_the_server_has_ended_is_a_lost_connection(
    engine: sa.Engine,
) -> None:
    with engine.connect() as conn, engine.connect() as other:
        pid = conn.scalar(sa.text("SELECT pg_backend_pid()"))
        conn.rollback()
        other.execute(sa.text("SELECT pg_terminate_backend(:pid, 1000)"), {"pid": pid})

        with pytest.raises(exc.DBAPIError) as raised:
            conn.execute(_NOTE, {"word": "lost", "number": 1})

        assert database.is_transient(raised.value)
    assert words(engine) == []


def test_a_statement_is_prepared_once_a_connection_and_found_again(
    engine: sa.Engine,
) -> None:
    with engine.begin() as conn:
        for number in range(7):
            conn.execute(_NOTE, {"word": f"word {number}", "number": number})
        prepared = conn.exec_driver_sql(
            "SELECT generic_plans + custom_plans FROM pg_prepared_statements"
            " WHERE statement LIKE 'INSERT INTO noted%'"
        )

        assert prepared.all() == [(7,)]
    assert len(words(engine)) == 7


def test_the_same_text_with_other_types_is_another_statement(engine: sa.Engine) -> None:
    same = "SELECT coalesce(%s, NULL)"

    with engine.begin() as conn:
        cursor = driver(conn).cursor()
        for oid, value in ((23, 5), (25, "five"), (23, 6)):
            cursor.setinputsizes(oid)
            cursor.execute(same, (value,))
            assert cursor.fetchone() == [value]


def test_a_statement_that_no_longer_fits_its_table_is_prepared_again(engine: sa.Engine) -> None:
    look = sa.text("SELECT number FROM noted WHERE word = :word")
    with engine.begin() as conn:
        conn.execute(_NOTE, {"word": "a", "number": 1})
    with engine.connect() as conn:
        assert conn.scalar(look, {"word": "a"}) == 1
        conn.exec_driver_sql("ALTER TABLE noted ALTER number TYPE text")
        conn.commit()
        with pytest.raises(exc.DBAPIError, match="cached plan"):
            conn.scalar(look, {"word": "a"})
        conn.rollback()

        assert conn.scalar(look, {"word": "a"}) == "1"


def test_more_statements_than_are_kept_all_work(engine: sa.Engine) -> None:
    with engine.begin() as conn:
        for number in range(2 * pipelining._MAX_PREPARED):
            found = conn.exec_driver_sql(f"SELECT %s::integer + {number}", (1,)).scalar()
            assert found == number + 1

        assert len(prepared(conn)) == pipelining._MAX_PREPARED


def test_the_statements_used_last_are_the_ones_that_are_kept(engine: sa.Engine) -> None:
    with engine.begin() as conn:
        for number in range(2 * pipelining._MAX_PREPARED):
            conn.exec_driver_sql(f"SELECT %s::integer + {number}", (1,))
            conn.exec_driver_sql("SELECT %s::integer + 1000", (1,))

        # Prepared once, as the second of all.
        assert [each.name for each in prepared(conn) if "1000" in each.statement] == ["s1"]


def test_statements_that_fail_leave_nothing_on_the_server(engine: sa.Engine) -> None:
    with engine.begin() as conn:
        conn.execute(_NOTE, {"word": "a", "number": 1})
    with engine.connect() as conn:
        for _ in range(3):
            with pytest.raises(exc.DBAPIError):
                conn.exec_driver_sql("SELECT 1 / %s::integer", (0,))
            conn.rollback()
        # What is forgotten is told with the next statement that has parameters.
        conn.execute(_NOTE, {"word": "b", "number": 2})

        assert not [each for each in prepared(conn) if "1 /" in each.statement]


def test_statements_prepared_again_leave_nothing_on_the_server(engine: sa.Engine) -> None:
    look = sa.text("SELECT number FROM noted WHERE word = :word")
    with engine.connect() as conn:
        for kind in ("text", "integer", "text"):
            conn.scalar(look, {"word": "a"})
            conn.commit()
            conn.exec_driver_sql(f"ALTER TABLE noted ALTER number TYPE {kind} USING number::{kind}")
            conn.commit()
            with pytest.raises(exc.DBAPIError, match="cached plan"):
                conn.scalar(look, {"word": "a"})
            conn.rollback()
        conn.scalar(look, {"word": "a"})

        assert len([each for each in prepared(conn) if "noted" in each.statement]) == 1


def test_any_number_of_ids_is_one_statement(engine: sa.Engine) -> None:
    with engine.begin() as conn:
        for count in range(1, 6):
            ids = [uuid.uuid4() for _ in range(count)]
            job_store.mark_rung(conn, ids)
            job_store.mark_results_deleted(conn, ids)
            job_store.live_tokens(conn, ids)
            operator_store.statuses(conn, ids)

        assert len([each for each in prepared(conn) if "jobplatform" in each.statement]) == 4


def prepared(conn: sa.Connection) -> Sequence[sa.Row[Any]]:
    return conn.exec_driver_sql(
        "SELECT name, statement FROM pg_prepared_statements"
        " WHERE statement NOT LIKE '%pg_prepared_statements%'"
    ).all()

"""Migrations: from nothing, twice, at once, by no superuser, to what tables.py says."""

import datetime as dt
import os
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import autogenerate, command, migration, script
from alembic.config import Config

from infra.local import postgres
from jobplatform import database, migrations, settings, tables
from tests.conftest import new_client
from tests.helpers import processes, store


@pytest.fixture
def engine(empty: settings.DatabaseSettings) -> Iterator[sa.Engine]:
    made = database.create_engine(empty, application_name="tests")
    yield made
    made.dispose()


def revision(engine: sa.Engine) -> str | None:
    with engine.connect() as conn:
        options = {"version_table_schema": tables.SCHEMA}
        return migration.MigrationContext.configure(conn, opts=options).get_current_revision()


def scripts(engine: sa.Engine) -> script.ScriptDirectory:
    return script.ScriptDirectory.from_config(migrations.config(engine))


def test_from_nothing_to_head(engine: sa.Engine) -> None:
    assert migrations.upgrade(engine) is True

    assert revision(engine) == scripts(engine).get_current_head()
    with engine.connect() as conn:
        found = set(sa.inspect(conn).get_table_names(schema=tables.SCHEMA))
    assert found == {table.name for table in tables.metadata.sorted_tables} | {"alembic_version"}


def test_twice_is_the_same_as_once(engine: sa.Engine) -> None:
    migrations.upgrade(engine)
    before = revision(engine)

    migrations.upgrade(engine)

    assert revision(engine) == before


def test_revisions_are_one_line_with_one_head(engine: sa.Engine) -> None:
    found = list(scripts(engine).walk_revisions())

    assert len(scripts(engine).get_heads()) == 1
    assert not any(each.is_merge_point or each.is_branch_point for each in found)
    # Numbered files, so that the order is seen in a listing.
    assert [each.revision for each in reversed(found)] == [
        f"{number:04}" for number in range(1, len(found) + 1)
    ]
    assert all(each.doc for each in found)


def test_tables_in_code_are_those_in_the_database(engine: sa.Engine) -> None:
    """Columns, types, nullability, server defaults, keys, indexes."""
    migrations.upgrade(engine)
    with engine.connect() as conn:
        context = migration.MigrationContext.configure(
            conn,
            opts={
                "include_schemas": True,
                "version_table_schema": tables.SCHEMA,
                "compare_type": True,
                "compare_server_default": True,
                "include_name": lambda name, kind, parents: (
                    kind != "schema" or name == tables.SCHEMA
                ),
            },
        )

        assert autogenerate.compare_metadata(context, tables.metadata) == []


def test_checks_and_index_conditions_are_those_in_the_database(engine: sa.Engine) -> None:
    """Which Alembic does not compare: made from the code in a second schema, read by the server."""
    migrations.upgrade(engine)
    second = sa.MetaData(naming_convention=tables.metadata.naming_convention)
    for table in tables.metadata.sorted_tables:
        table.to_metadata(second, schema="second", referred_schema_fn=lambda *_: "second")
    query = """
        SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint
        WHERE connamespace = '{0}'::regnamespace AND contype IN ('c', 'f', 'u', 'p')
            AND conname NOT LIKE 'alembic%'
        UNION ALL
        SELECT indrelid::regclass::text, relname, pg_get_indexdef(indexrelid) FROM pg_index
        JOIN pg_class ON pg_class.oid = indexrelid
        WHERE relnamespace = '{0}'::regnamespace AND relname NOT LIKE 'alembic%'
        UNION ALL
        SELECT oid::regclass::text, 'options', reloptions::text FROM pg_class
        WHERE relnamespace = '{0}'::regnamespace AND reloptions IS NOT NULL
        ORDER BY 1, 2, 3"""

    def read(conn: sa.Connection, schema: str) -> list[tuple[str, ...]]:
        rows = conn.exec_driver_sql(query.format(schema).replace("%", "%%")).all()
        return sorted(tuple(text.replace(f"{schema}.", "") for text in row) for row in rows)

    with engine.begin() as conn:
        conn.exec_driver_sql("CREATE SCHEMA second")
        second.create_all(conn)

        assert read(conn, "second") == read(conn, tables.SCHEMA)


def upgrade(address: settings.DatabaseSettings) -> bool:
    """In a process or thread of its own."""
    engine = database.create_engine(address, application_name="migrating")
    try:
        return migrations.upgrade(engine)
    finally:
        engine.dispose()


@processes.FORKS
def test_many_at_once_wait_for_each_other(
    engine: sa.Engine, empty: settings.DatabaseSettings
) -> None:
    """As when a deployment is tried again while the first try is still at work."""
    assert processes.at_once(4, lambda: upgrade(empty)) == [True] * 4

    assert revision(engine) == scripts(engine).get_current_head()


def test_waiting_for_another_migration_has_no_short_end(
    engine: sa.Engine, empty: settings.DatabaseSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time limit is for tables; a migration that runs for minutes is no reason to fail."""
    monkeypatch.setattr(migrations, "LOCK_TIMEOUT", "20ms")
    waited = sa.text(
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'migrating'"
        " AND wait_event = 'advisory' AND clock_timestamp() - query_start > interval '200 ms'"
    )

    def is_waiting() -> bool:
        with engine.begin() as conn:
            return bool(conn.scalar(waited))

    done: list[bool] = []
    migrating = threading.Thread(target=lambda: done.append(upgrade(empty)))

    with engine.connect() as other:
        other.exec_driver_sql(f"SELECT pg_advisory_lock({0x6A6F6273})")
        other.commit()
        migrating.start()
        store.until(is_waiting, what="the migration to wait")
        other.exec_driver_sql("SELECT pg_advisory_unlock_all()")
        other.commit()
        migrating.join(30)

    assert done == [True]


def test_migration_gives_up_on_a_table_that_is_held_and_changes_nothing(
    engine: sa.Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrations, "LOCK_TIMEOUT", "50ms")
    migrations.upgrade(engine)
    before = revision(engine)
    config = with_another(engine, tmp_path, "ALTER TABLE jobplatform.jobs ADD COLUMN more int")

    with engine.connect() as reader:
        reader.exec_driver_sql("SELECT count(*) FROM jobplatform.jobs")  # until it ends
        with pytest.raises(sa.exc.DatabaseError, match="lock timeout"):
            command.upgrade(config, "head")

    assert revision(engine) == before
    command.upgrade(config, "head")
    assert revision(engine) == "9999"


def with_another(engine: sa.Engine, folder: Path, statement: str) -> Config:
    """The configuration of a release that has one migration more."""
    config = migrations.config(engine)
    head = scripts(engine).get_current_head()
    (folder / "9999_more.py").write_text(
        f'"""One more."""\nfrom alembic import op\nrevision, down_revision = "9999", "{head}"\n'
        f"def upgrade():\n    op.execute({statement!r})\n"
    )
    ours = Path(migrations.__file__).parent / "versions"
    config.set_main_option("version_locations", f"{ours}{os.pathsep}{folder}")
    return config


def test_previous_release_works_on_while_the_next_ones_schema_is_there(
    engine: sa.Engine, tmp_path: Path
) -> None:
    """Between the migration and the new code, and after a rollback of the code alone."""
    migrations.upgrade(engine)
    statement = "ALTER TABLE jobplatform.jobs ADD COLUMN more int"
    command.upgrade(with_another(engine, tmp_path, statement), "head")

    assert migrations.upgrade(engine) is False

    assert revision(engine) == "9999"
    job_id = store.add(engine, new_client(engine, "acme"))
    assert store.get(engine, job_id).status == "queued"


def test_role_that_migrates_is_no_superuser(engine: sa.Engine) -> None:
    """As the master user of RDS is none; it may make roles."""
    migrations.upgrade(engine)

    with engine.begin() as conn:
        facts = conn.exec_driver_sql(
            "SELECT rolsuper, rolcreaterole, rolbypassrls FROM pg_roles"
            " WHERE rolname = current_user"
        ).one()
        assert tuple(facts) == (False, True, False)
        # It can become the clients' role, which can do nothing by itself.
        conn.exec_driver_sql("SET LOCAL ROLE jobplatform_client")
    with engine.begin() as conn:
        role = conn.exec_driver_sql(
            "SELECT rolcanlogin, rolsuper, rolcreaterole, rolcreatedb, rolbypassrls, rolreplication"
            " FROM pg_roles WHERE rolname = 'jobplatform_client'"
        ).one()
    assert not any(role)


def test_second_database_of_a_server_shares_the_role(
    engine: sa.Engine, server: postgres.LocalPostgres, migrated: settings.DatabaseSettings
) -> None:
    """Roles belong to the server: `migrated` has made it already."""
    assert migrations.upgrade(engine) is True


def test_tables_belong_to_who_migrates_and_are_open_to_nobody(engine: sa.Engine) -> None:
    migrations.upgrade(engine)

    with engine.connect() as conn:
        granted = conn.exec_driver_sql(
            "SELECT table_name, grantee, privilege_type FROM information_schema.table_privileges"
            " WHERE table_schema = 'jobplatform' AND grantee <> current_user"
        ).all()
    assert {tuple(row) for row in granted} == {
        ("jobs", "jobplatform_client", "SELECT"),
        ("jobs", "jobplatform_client", "INSERT"),
        ("jobs", "jobplatform_client", "UPDATE"),
        ("attempts", "jobplatform_client", "SELECT"),
        ("transitions", "jobplatform_client", "SELECT"),
    }


def test_rows_survive_a_migration_that_has_nothing_to_do(engine: sa.Engine) -> None:
    migrations.upgrade(engine)
    with engine.begin() as conn:
        conn.execute(
            sa.insert(tables.clients).values(
                id=uuid.uuid4(), name="acme", created_at=dt.datetime.now(dt.UTC)
            )
        )

    migrations.upgrade(engine)

    assert store.count(engine, "clients") == 1


def test_failed_migration_leaves_nothing_and_the_next_one_works(
    engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(statement: str) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr("alembic.op.execute", fail)
        with pytest.raises(ZeroDivisionError):
            migrations.upgrade(engine)

    assert revision(engine) is None
    with engine.connect() as conn:
        left = sa.inspect(conn).get_table_names(schema=tables.SCHEMA)
    assert set(left) <= {"alembic_version"}
    assert migrations.upgrade(engine) is True

"""Runs migrations over the engine that `jobplatform.migrations` was given."""

import sqlalchemy as sa
from alembic import context

from jobplatform import tables

_LOCK = 0x6A6F6273  # "jobs": one migration run at a time


def run() -> None:
    engine: sa.Engine = context.config.attributes["engine"]
    with engine.connect() as connection:
        connection.execute(sa.text("SET statement_timeout = 0"))
        connection.execute(sa.text("SELECT pg_advisory_lock(:key)"), {"key": _LOCK})
        # From here on, for tables: another migration is worth waiting for.
        connection.execute(
            sa.text("SELECT set_config('lock_timeout', :limit, false)"),
            {"limit": context.config.attributes["lock_timeout"]},
        )
        connection.execute(sa.text(f"CREATE SCHEMA IF NOT EXISTS {tables.SCHEMA}"))
        connection.commit()
        context.configure(
            connection=connection,
            target_metadata=tables.metadata,
            version_table_schema=tables.SCHEMA,
            include_schemas=True,
            transaction_per_migration=True,
        )
        try:
            with context.begin_transaction():
                context.run_migrations()
        finally:
            connection.rollback()
            connection.execute(sa.text("SELECT pg_advisory_unlock_all()"))
            connection.commit()


run()

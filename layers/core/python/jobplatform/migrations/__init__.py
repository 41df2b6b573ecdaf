"""Alembic migrations of the platform's tables, shipped with the code that needs them.

Expand and contract: a migration may add what the running version ignores and drop what it no longer
reads, so that old and new code work side by side during a deployment.
"""

from pathlib import Path

import alembic.command
import alembic.config
import sqlalchemy as sa
from alembic import migration, script, util

from jobplatform import tables

LOCK_TIMEOUT = "5s"
"""How long a migration waits for a table: every submit would queue behind it."""


def config(engine: sa.Engine) -> alembic.config.Config:
    settings = alembic.config.Config()
    settings.set_main_option("script_location", str(Path(__file__).parent))
    settings.set_main_option("path_separator", "os")
    settings.attributes.update(engine=engine, lock_timeout=LOCK_TIMEOUT)
    return settings


def upgrade(engine: sa.Engine, revision: str = "head") -> bool:
    """Brings the schema to `revision`; concurrent callers wait for each other by an advisory lock.

    False where the schema is already ahead of this code: a deployment that is rolled back brings
    the old code back over the new schema, which it works on and must leave alone.
    """
    settings = config(engine)
    if _is_ahead(engine, script.ScriptDirectory.from_config(settings)):
        return False
    alembic.command.upgrade(settings, revision)
    return True


def _is_ahead(engine: sa.Engine, known: script.ScriptDirectory) -> bool:
    with engine.connect() as connection:
        options = {"version_table_schema": tables.SCHEMA}
        heads = migration.MigrationContext.configure(connection, opts=options).get_current_heads()
    try:
        for head in heads:
            known.get_revision(head)
    except util.CommandError:
        return True
    return False

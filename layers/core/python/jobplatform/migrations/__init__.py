"""Alembic migrations of the platform's tables, shipped with the code that needs them.

Expand and contract: a migration may add what the running version ignores and drop what it no longer reads, so that old
and new code work side by side during a deployment.
"""

from pathlib import Path

import alembic.command
import alembic.config
import sqlalchemy as sa


def config(engine: sa.Engine) -> alembic.config.Config:
    settings = alembic.config.Config()
    settings.set_main_option("script_location", str(Path(__file__).parent))
    settings.set_main_option("path_separator", "os")
    settings.attributes["engine"] = engine
    return settings


def upgrade(engine: sa.Engine, revision: str = "head") -> None:
    """Brings the schema to `revision`; concurrent callers wait for each other by an advisory lock."""
    alembic.command.upgrade(config(engine), revision)

"""${message}

Old code must work on the schema that this leaves (expand), and new code on the one before it is applied nowhere:
migrations run before new code takes traffic. Drop only what no released version reads any more (contract).
"""

import sqlalchemy as sa
from alembic import op

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}


def upgrade() -> None:
    ${upgrades if upgrades else "raise NotImplementedError"}

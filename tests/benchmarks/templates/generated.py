"""Rows of 400 bytes

As many as are asked for, made by the server from a table of ids: 10 GB need no 10 GB of disk.
"""

from typing import Any

import sqlalchemy as sa

from jobplatform.templating import Params as BaseParams
from jobplatform.templating import Template

ROW_BYTES = 400
TABLE = "ids"
_ids = sa.table(TABLE, sa.column("id", sa.BigInteger))


class Params(BaseParams):
    rows: int


def query(params: Params) -> sa.Select[Any]:
    digest = sa.func.md5(sa.cast(_ids.c.id, sa.Text))
    filler = sa.func.repeat(digest, 11)
    # The id's own length is made up for, so that every row is as long as the others.
    padding = sa.func.lpad(sa.cast(_ids.c.id, sa.Text), 12, "0")
    return (
        sa.select(_ids.c.id, padding.label("padded"), digest.label("digest"), filler.label("text"))
        .where(_ids.c.id <= params.rows)
        .order_by(_ids.c.id)
    )


template = Template(params=Params, query=query, order=("id",), split_by="id")

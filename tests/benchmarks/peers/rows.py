"""An export as commonly written: SQLAlchemy rows into csv.writer. Prints the seconds taken."""

import asyncio
import csv
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine

_BATCH = 5_000


def synchronous(url: str, query: str, sink: Any) -> None:
    engine = sa.create_engine(url.replace("postgresql://", "postgresql+pg8000://"))
    writer = csv.writer(sink, lineterminator="\n")
    with engine.connect().execution_options(yield_per=_BATCH) as connection:
        result = connection.execute(sa.text(query))
        writer.writerow(result.keys())
        for rows in result.partitions():
            writer.writerows(rows)


async def asynchronous(url: str, query: str, sink: Any) -> None:
    engine = create_async_engine(url.replace("postgresql://", "postgresql+asyncpg://"))
    writer = csv.writer(sink, lineterminator="\n")
    async with engine.connect() as connection:
        result = await connection.stream(sa.text(query), execution_options={"yield_per": _BATCH})
        writer.writerow(result.keys())
        async for rows in result.partitions():
            writer.writerows(rows)
    await engine.dispose()


def main() -> None:
    given = json.load(sys.stdin)
    began = time.perf_counter()
    with Path(os.devnull).open("w", newline="") as sink:
        if given["driver"] == "asyncpg":
            asyncio.run(asynchronous(given["url"], given["query"], sink))
        else:
            synchronous(given["url"], given["query"], sink)
    print(time.perf_counter() - began)


if __name__ == "__main__":
    main()

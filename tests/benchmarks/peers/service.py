"""The same thing as it is commonly built: FastAPI, Arq and Redis, with SQLAlchemy and asyncpg.

`uvicorn service:app` is the API, `arq service.Worker` the worker; both with the defaults of their
tools, Arq's poll included. It does what the platform does for a tiny job, and none of its promises:
a key, an Idempotency-Key, a row in Postgres, a CSV in S3.
"""

import asyncio
import csv
import datetime as dt
import functools
import hashlib
import io
import os
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import arq
import boto3
import sqlalchemy as sa
from arq.connections import RedisSettings
from fastapi import Depends, FastAPI, Header, HTTPException, Request, Response
from pydantic import BaseModel
from sqlalchemy.dialects import postgresql as pg
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

REDIS = RedisSettings(host="127.0.0.1", port=int(os.environ.get("PEER_REDIS_PORT", "6379")))

metadata = sa.MetaData()
keys = sa.Table(
    "keys",
    metadata,
    sa.Column("sha256", sa.LargeBinary, primary_key=True),
    sa.Column("client_id", sa.Uuid, nullable=False),
)
jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("client_id", sa.Uuid, nullable=False),
    sa.Column("idempotency_key", sa.Text),
    sa.Column("template_name", sa.Text, nullable=False),
    sa.Column("parameters", pg.JSONB, nullable=False),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("result_key", sa.Text),
    sa.Column("rows", sa.BigInteger),
    sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.func.now()),
    sa.Column("finished_at", sa.DateTime(timezone=True)),
    sa.UniqueConstraint("client_id", "idempotency_key"),
)


@functools.cache
def engine() -> AsyncEngine:
    return create_async_engine(os.environ["PEER_DATABASE_URL"])


@functools.cache
def data_engine() -> AsyncEngine:
    return create_async_engine(os.environ["PEER_DATA_DATABASE_URL"])


@functools.cache
def s3() -> Any:
    return boto3.client("s3")


class Submit(BaseModel):
    template_name: str
    parameters: dict[str, Any] = {}


class Job(BaseModel):
    id: uuid.UUID
    template_name: str
    parameters: dict[str, Any]
    status: str
    rows: int | None
    created_at: dt.datetime
    finished_at: dt.datetime | None


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    app.state.queue = await arq.create_pool(REDIS)
    yield
    await app.state.queue.aclose()


app = FastAPI(lifespan=lifespan)
_callers: dict[bytes, uuid.UUID] = {}


async def caller(x_api_key: Annotated[str, Header()]) -> uuid.UUID:
    digest = hashlib.sha256(x_api_key.encode()).digest()
    if digest not in _callers:
        async with engine().connect() as conn:
            found = await conn.scalar(sa.select(keys.c.client_id).where(keys.c.sha256 == digest))
        if found is None:
            raise HTTPException(403)
        _callers[digest] = found
    return _callers[digest]


@app.post("/jobs", status_code=202)
async def submit(
    body: Submit,
    request: Request,
    response: Response,
    client_id: Annotated[uuid.UUID, Depends(caller)],
    idempotency_key: Annotated[str | None, Header()] = None,
) -> Job:
    async with engine().begin() as conn:
        row = (
            await conn.execute(
                pg.insert(jobs)
                .values(
                    id=uuid.uuid4(),
                    client_id=client_id,
                    idempotency_key=idempotency_key,
                    template_name=body.template_name,
                    parameters=body.parameters,
                    status="queued",
                )
                .on_conflict_do_nothing()
                .returning(*jobs.c)
            )
        ).first()
        made = row is not None
        if row is None:
            row = (
                await conn.execute(
                    sa.select(jobs).where(
                        jobs.c.client_id == client_id, jobs.c.idempotency_key == idempotency_key
                    )
                )
            ).one()
    if made:
        await request.app.state.queue.enqueue_job("export", str(row.id), _job_id=str(row.id))
    response.headers["Location"] = f"/jobs/{row.id}"
    return Job.model_validate(row._asdict())


@app.get("/jobs/{job_id}")
async def show(job_id: uuid.UUID, client_id: Annotated[uuid.UUID, Depends(caller)]) -> Job:
    async with engine().connect() as conn:
        row = (
            await conn.execute(
                sa.select(jobs).where(jobs.c.id == job_id, jobs.c.client_id == client_id)
            )
        ).first()
    if row is None:
        raise HTTPException(404)
    return Job.model_validate(row._asdict())


async def export(context: dict[str, Any], job_id: str) -> None:
    async with engine().begin() as conn:
        await conn.execute(
            sa.update(jobs).where(jobs.c.id == uuid.UUID(job_id)).values(status="running")
        )
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    rows = 0
    async with data_engine().connect() as conn:
        result = await conn.stream(sa.text(os.environ["PEER_QUERY"]))
        writer.writerow(result.keys())
        async for row in result:
            writer.writerow(row)
            rows += 1
    key = f"results/{job_id}.csv"
    await asyncio.to_thread(
        s3().put_object, Bucket=os.environ["PEER_BUCKET"], Key=key, Body=text.getvalue().encode()
    )
    async with engine().begin() as conn:
        await conn.execute(
            sa.update(jobs)
            .where(jobs.c.id == uuid.UUID(job_id))
            .values(status="succeeded", result_key=key, rows=rows, finished_at=sa.func.now())
        )


class Worker:
    """Settings of `arq`."""

    functions = (export,)
    redis_settings = REDIS


async def make(api_key: str) -> None:
    """Creates the tables and one client with this key."""
    async with engine().begin() as conn:
        await conn.run_sync(metadata.create_all)
        digest = hashlib.sha256(api_key.encode()).digest()
        await conn.execute(sa.insert(keys).values(sha256=digest, client_id=uuid.uuid4()))


if __name__ == "__main__":
    asyncio.run(make(os.environ["PEER_API_KEY"]))

"""The platform's tables. Migrations make them; a test holds these definitions to those."""

import uuid
from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg

SCHEMA = "jobplatform"
CLIENT_ROLE = "jobplatform_client"
"""Role the API takes on for a request: row-level security shows it one client's rows."""

metadata = sa.MetaData(
    schema=SCHEMA,
    naming_convention={
        "ix": "%(table_name)s_%(column_0_N_name)s_idx",
        "uq": "%(table_name)s_%(column_0_N_name)s_key",
        "ck": "%(table_name)s_%(constraint_name)s_check",
        "fk": "%(table_name)s_%(column_0_N_name)s_fkey",
        "pk": "%(table_name)s_pkey",
    },
)

_timestamp = sa.DateTime(timezone=True)


def any_of(ids: Iterable[uuid.UUID]) -> sa.ColumnElement[Any]:
    """One parameter for any number of ids, so that it is one prepared statement for all numbers."""
    return sa.any_(sa.bindparam(None, list(ids), type_=pg.ARRAY(sa.Uuid())))


clients = sa.Table(
    "clients",
    metadata,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("created_at", _timestamp, nullable=False, server_default=sa.func.now()),
    sa.Column("removed_at", _timestamp),
    # When one of its jobs was last claimed: the tie-break of fairness.
    sa.Column("last_claimed_at", _timestamp),
    sa.Index(
        "clients_name_key", "name", unique=True, postgresql_where=sa.text("removed_at IS NULL")
    ),
)

api_keys = sa.Table(
    "api_keys",
    metadata,
    sa.Column("key_sha256", sa.LargeBinary, primary_key=True),
    sa.Column(
        "client_id", sa.Uuid, sa.ForeignKey("clients.id", ondelete="CASCADE"), nullable=False
    ),
    sa.Column("api_key_id", sa.Text, nullable=False, unique=True),
    sa.Column("plan", sa.Text, nullable=False),
    sa.Column("created_at", _timestamp, nullable=False, server_default=sa.func.now()),
    sa.Column("revoked_at", _timestamp),
    sa.Index(None, "client_id"),
)

jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("client_id", sa.Uuid, sa.ForeignKey("clients.id"), nullable=False),
    sa.Column("plan", sa.Text, nullable=False),
    sa.Column("template_name", sa.Text, nullable=False),
    sa.Column("template_version", sa.Text, nullable=False),
    sa.Column("parameters", pg.JSONB, nullable=False),
    sa.Column("metadata", pg.JSONB, nullable=False),
    sa.Column("format", sa.Text, nullable=False),
    sa.Column("compression", sa.Text, nullable=False),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("status_reason", sa.Text, nullable=False),
    sa.Column("run_at", _timestamp),
    sa.Column("created_at", _timestamp, nullable=False),
    sa.Column("available_at", _timestamp, nullable=False),
    sa.Column("rung_at", _timestamp),
    sa.Column("started_at", _timestamp),
    sa.Column("finished_at", _timestamp),
    sa.Column("expires_at", _timestamp),
    sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
    sa.Column("max_attempts", sa.Integer, nullable=False),
    sa.Column("attempt_token", sa.Uuid),
    sa.Column("lease_expires_at", _timestamp),
    sa.Column("cancel_requested_at", _timestamp),
    sa.Column("rows_written", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("bytes_written", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("rows_estimated", sa.BigInteger),
    sa.Column("checkpoint", pg.JSONB(none_as_null=True)),
    sa.Column("error_code", sa.Text),
    sa.Column("error_message", sa.Text),
    sa.Column("idempotency_key", sa.Text),
    sa.Column("idempotency_expires_at", _timestamp),
    sa.Column("request_hash", sa.Text),
    sa.Column("dead_letter_at", _timestamp),
    sa.Column("result_key", sa.Text),
    sa.Column("result_rows", sa.BigInteger),
    sa.Column("result_bytes", sa.BigInteger),
    sa.Column("result_sha256", sa.Text),
    sa.Column("result_as_of", _timestamp),
    sa.Column("result_consistency", sa.Text),
    sa.Column("result_expires_at", _timestamp),
    sa.Column("result_deleted_at", _timestamp),
    sa.CheckConstraint(
        "status IN ('queued', 'running', 'succeeded', 'failed', 'cancelled')", name="status"
    ),
    sa.CheckConstraint(
        "(status = 'running') = (attempt_token IS NOT NULL AND lease_expires_at IS NOT NULL)",
        name="running_has_lease",
    ),
    sa.CheckConstraint(
        "(status IN ('succeeded', 'failed', 'cancelled')) = (finished_at IS NOT NULL)",
        name="final_has_end",
    ),
    sa.CheckConstraint(
        "status <> 'succeeded' OR result_key IS NOT NULL", name="success_has_result"
    ),
    # The idempotency record is the job row; this index is what makes one key one job.
    sa.Index(
        "jobs_idempotency_key",
        "client_id",
        "idempotency_key",
        unique=True,
        postgresql_where=sa.text("idempotency_key IS NOT NULL"),
    ),
    sa.Index("jobs_list_idx", "client_id", sa.text("created_at DESC"), sa.text("id DESC")),
    sa.Index(
        "jobs_list_by_status_idx",
        "client_id",
        "status",
        sa.text("created_at DESC"),
        sa.text("id DESC"),
    ),
    sa.Index(
        "jobs_list_by_template_idx",
        "client_id",
        "template_name",
        sa.text("created_at DESC"),
        sa.text("id DESC"),
    ),
    # Small whatever the table's size: only what waits or runs is in them.
    sa.Index(
        "jobs_queued_by_client_idx",
        "client_id",
        "available_at",
        "id",
        postgresql_where=sa.text("status = 'queued'"),
    ),
    sa.Index("jobs_queued_idx", "available_at", postgresql_where=sa.text("status = 'queued'")),
    # Exports that were handed over, which go before all others: a snapshot waits for them.
    sa.Index(
        "jobs_continuing_idx",
        "available_at",
        postgresql_where=sa.text("status = 'queued' AND checkpoint IS NOT NULL"),
    ),
    # Without the lease's end, so that a heartbeat stays a heap-only update.
    sa.Index("jobs_running_idx", "client_id", postgresql_where=sa.text("status = 'running'")),
    sa.Index("jobs_expires_idx", "expires_at", postgresql_where=sa.text("expires_at IS NOT NULL")),
    sa.Index(
        "jobs_result_expires_idx",
        "result_expires_at",
        postgresql_where=sa.text("result_expires_at IS NOT NULL AND result_deleted_at IS NULL"),
    ),
    sa.Index(
        "jobs_idempotency_expires_idx",
        "idempotency_expires_at",
        postgresql_where=sa.text("idempotency_key IS NOT NULL"),
    ),
    # Room for the updates of a job's life on its own page.
    postgresql_with={"fillfactor": "70"},
)

attempts = sa.Table(
    "attempts",
    metadata,
    sa.Column("token", sa.Uuid, primary_key=True),
    sa.Column("job_id", sa.Uuid, sa.ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
    sa.Column("client_id", sa.Uuid, nullable=False),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("worker", sa.Text, nullable=False),
    sa.Column("started_at", _timestamp, nullable=False, server_default=sa.func.now()),
    sa.Column("finished_at", _timestamp),
    # published, retry, failed, cancelled, worker_lost, handed_over
    sa.Column("outcome", sa.Text),
    sa.Column("error_code", sa.Text),
    sa.Column("error_detail", sa.Text),
    sa.Column("rows_written", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("bytes_written", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("as_of", _timestamp),
    # Whose S3 prefix it writes under: its own, or that of the attempt whose upload it continues.
    sa.Column("upload_token", sa.Uuid, nullable=False),
    # When what it had left in S3 was last removed, and since when nothing is left for certain. That
    # is set for published ones too, so that few rows lack it and the planner knows that.
    sa.Column("erased_at", _timestamp),
    sa.Column("cleaned_at", _timestamp),
    sa.Index("attempts_job_id_idx", "job_id", "number"),
    sa.Index(
        "attempts_to_clean_idx",
        "finished_at",
        postgresql_where=sa.text("finished_at IS NOT NULL AND cleaned_at IS NULL"),
    ),
)

transitions = sa.Table(
    "transitions",
    metadata,
    sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
    sa.Column("job_id", sa.Uuid, sa.ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
    sa.Column("client_id", sa.Uuid, nullable=False),
    sa.Column("at", _timestamp, nullable=False, server_default=sa.func.clock_timestamp()),
    sa.Column("from_status", sa.Text, nullable=False),
    sa.Column("to_status", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Index(None, "job_id"),
)

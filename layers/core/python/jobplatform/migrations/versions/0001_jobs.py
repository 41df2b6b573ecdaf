"""Clients, keys, jobs, attempts, transitions; row-level security; the state machine's wall."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0001"
down_revision = None

_ROLE = """
DO $$
BEGIN
    CREATE ROLE jobplatform_client NOLOGIN;
EXCEPTION WHEN duplicate_object OR unique_violation THEN
    NULL; -- roles belong to the cluster: another database of it has made it
END
$$;
"""

_MEMBER = """
DO $$
BEGIN
    IF NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) THEN
        EXECUTE format('GRANT jobplatform_client TO %I', current_user);
    END IF;
END
$$;
"""

_GUARD = """
CREATE FUNCTION jobplatform.job_transition() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF (OLD.status, NEW.status) NOT IN (
        ('queued', 'running'), ('queued', 'cancelled'),
        ('running', 'queued'), ('running', 'succeeded'), ('running', 'failed'),
        ('running', 'cancelled'),
        ('failed', 'queued'), ('cancelled', 'queued')
    ) THEN
        RAISE EXCEPTION 'job % cannot go from % to %', OLD.id, OLD.status, NEW.status
            USING ERRCODE = 'check_violation', CONSTRAINT = 'job_transition';
    END IF;
    INSERT INTO jobplatform.transitions (job_id, client_id, from_status, to_status, reason, attempt)
    VALUES (NEW.id, NEW.client_id, OLD.status, NEW.status, NEW.status_reason, NEW.attempts);
    RETURN NULL;
END
$$;

CREATE TRIGGER job_transition AFTER UPDATE OF status ON jobplatform.jobs
FOR EACH ROW WHEN (OLD.status IS DISTINCT FROM NEW.status)
EXECUTE FUNCTION jobplatform.job_transition();
"""

_SECURITY = """
GRANT USAGE ON SCHEMA jobplatform TO jobplatform_client;
GRANT SELECT, INSERT, UPDATE ON jobplatform.jobs TO jobplatform_client;
GRANT SELECT ON jobplatform.attempts, jobplatform.transitions TO jobplatform_client;

ALTER TABLE jobplatform.jobs ENABLE ROW LEVEL SECURITY;
ALTER TABLE jobplatform.attempts ENABLE ROW LEVEL SECURITY;
ALTER TABLE jobplatform.transitions ENABLE ROW LEVEL SECURITY;

CREATE POLICY own_jobs ON jobplatform.jobs TO jobplatform_client
    USING (client_id = current_setting('jobplatform.client_id')::uuid);
CREATE POLICY own_attempts ON jobplatform.attempts FOR SELECT TO jobplatform_client
    USING (client_id = current_setting('jobplatform.client_id')::uuid);
CREATE POLICY own_transitions ON jobplatform.transitions FOR SELECT TO jobplatform_client
    USING (client_id = current_setting('jobplatform.client_id')::uuid);
"""

_TIMESTAMP = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "clients",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("created_at", _TIMESTAMP, server_default=sa.text("now()"), nullable=False),
        sa.Column("removed_at", _TIMESTAMP, nullable=True),
        sa.Column("last_claimed_at", _TIMESTAMP, nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("clients_pkey")),
        schema="jobplatform",
    )
    op.create_index(
        "clients_name_key",
        "clients",
        ["name"],
        unique=True,
        schema="jobplatform",
        postgresql_where=sa.text("removed_at IS NULL"),
    )
    op.create_table(
        "api_keys",
        sa.Column("key_sha256", sa.LargeBinary(), nullable=False),
        sa.Column("client_id", sa.Uuid(), nullable=False),
        sa.Column("api_key_id", sa.Text(), nullable=False),
        sa.Column("plan", sa.Text(), nullable=False),
        sa.Column("created_at", _TIMESTAMP, server_default=sa.text("now()"), nullable=False),
        sa.Column("revoked_at", _TIMESTAMP, nullable=True),
        sa.ForeignKeyConstraint(
            ["client_id"],
            ["jobplatform.clients.id"],
            name=op.f("api_keys_client_id_fkey"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("key_sha256", name=op.f("api_keys_pkey")),
        sa.UniqueConstraint("api_key_id", name=op.f("api_keys_api_key_id_key")),
        schema="jobplatform",
    )
    op.create_index(
        op.f("api_keys_client_id_idx"),
        "api_keys",
        ["client_id"],
        unique=False,
        schema="jobplatform",
    )
    op.create_table(
        "jobs",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("client_id", sa.Uuid(), nullable=False),
        sa.Column("plan", sa.Text(), nullable=False),
        sa.Column("template_name", sa.Text(), nullable=False),
        sa.Column("template_version", sa.Text(), nullable=False),
        sa.Column("parameters", JSONB(), nullable=False),
        sa.Column("metadata", JSONB(), nullable=False),
        sa.Column("format", sa.Text(), nullable=False),
        sa.Column("compression", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("status_reason", sa.Text(), nullable=False),
        sa.Column("run_at", _TIMESTAMP, nullable=True),
        sa.Column("created_at", _TIMESTAMP, nullable=False),
        sa.Column("available_at", _TIMESTAMP, nullable=False),
        sa.Column("rung_at", _TIMESTAMP, nullable=True),
        sa.Column("started_at", _TIMESTAMP, nullable=True),
        sa.Column("finished_at", _TIMESTAMP, nullable=True),
        sa.Column("expires_at", _TIMESTAMP, nullable=True),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("max_attempts", sa.Integer(), nullable=False),
        sa.Column("attempt_token", sa.Uuid(), nullable=True),
        sa.Column("lease_expires_at", _TIMESTAMP, nullable=True),
        sa.Column("cancel_requested_at", _TIMESTAMP, nullable=True),
        sa.Column("rows_written", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("bytes_written", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("rows_estimated", sa.BigInteger(), nullable=True),
        sa.Column("checkpoint", JSONB(), nullable=True),
        sa.Column("error_code", sa.Text(), nullable=True),
        sa.Column("error_message", sa.Text(), nullable=True),
        sa.Column("idempotency_key", sa.Text(), nullable=True),
        sa.Column("idempotency_expires_at", _TIMESTAMP, nullable=True),
        sa.Column("request_hash", sa.Text(), nullable=True),
        sa.Column("dead_letter_at", _TIMESTAMP, nullable=True),
        sa.Column("result_key", sa.Text(), nullable=True),
        sa.Column("result_rows", sa.BigInteger(), nullable=True),
        sa.Column("result_bytes", sa.BigInteger(), nullable=True),
        sa.Column("result_sha256", sa.Text(), nullable=True),
        sa.Column("result_as_of", _TIMESTAMP, nullable=True),
        sa.Column("result_consistency", sa.Text(), nullable=True),
        sa.Column("result_expires_at", _TIMESTAMP, nullable=True),
        sa.Column("result_deleted_at", _TIMESTAMP, nullable=True),
        sa.CheckConstraint(
            "(status = 'running') = (attempt_token IS NOT NULL AND lease_expires_at IS NOT NULL)",
            name=op.f("jobs_running_has_lease_check"),
        ),
        sa.CheckConstraint(
            "(status IN ('succeeded', 'failed', 'cancelled')) = (finished_at IS NOT NULL)",
            name=op.f("jobs_final_has_end_check"),
        ),
        sa.CheckConstraint(
            "status <> 'succeeded' OR result_key IS NOT NULL",
            name=op.f("jobs_success_has_result_check"),
        ),
        sa.CheckConstraint(
            "status IN ('queued', 'running', 'succeeded', 'failed', 'cancelled')",
            name=op.f("jobs_status_check"),
        ),
        sa.ForeignKeyConstraint(
            ["client_id"], ["jobplatform.clients.id"], name=op.f("jobs_client_id_fkey")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("jobs_pkey")),
        schema="jobplatform",
        postgresql_with={"fillfactor": "70"},
    )
    op.create_index(
        "jobs_continuing_idx",
        "jobs",
        ["available_at"],
        unique=False,
        schema="jobplatform",
        postgresql_where=sa.text("status = 'queued' AND checkpoint IS NOT NULL"),
    )
    op.create_index(
        "jobs_expires_idx",
        "jobs",
        ["expires_at"],
        unique=False,
        schema="jobplatform",
        postgresql_where=sa.text("expires_at IS NOT NULL"),
    )
    op.create_index(
        "jobs_idempotency_expires_idx",
        "jobs",
        ["idempotency_expires_at"],
        unique=False,
        schema="jobplatform",
        postgresql_where=sa.text("idempotency_key IS NOT NULL"),
    )
    op.create_index(
        "jobs_idempotency_key",
        "jobs",
        ["client_id", "idempotency_key"],
        unique=True,
        schema="jobplatform",
        postgresql_where=sa.text("idempotency_key IS NOT NULL"),
    )
    op.create_index(
        "jobs_list_by_status_idx",
        "jobs",
        ["client_id", "status", sa.literal_column("created_at DESC"), sa.literal_column("id DESC")],
        unique=False,
        schema="jobplatform",
    )
    op.create_index(
        "jobs_list_by_template_idx",
        "jobs",
        [
            "client_id",
            "template_name",
            sa.literal_column("created_at DESC"),
            sa.literal_column("id DESC"),
        ],
        unique=False,
        schema="jobplatform",
    )
    op.create_index(
        "jobs_list_idx",
        "jobs",
        ["client_id", sa.literal_column("created_at DESC"), sa.literal_column("id DESC")],
        unique=False,
        schema="jobplatform",
    )
    op.create_index(
        "jobs_queued_by_client_idx",
        "jobs",
        ["client_id", "available_at", "id"],
        unique=False,
        schema="jobplatform",
        postgresql_where=sa.text("status = 'queued'"),
    )
    op.create_index(
        "jobs_queued_idx",
        "jobs",
        ["available_at"],
        unique=False,
        schema="jobplatform",
        postgresql_where=sa.text("status = 'queued'"),
    )
    op.create_index(
        "jobs_result_expires_idx",
        "jobs",
        ["result_expires_at"],
        unique=False,
        schema="jobplatform",
        postgresql_where=sa.text("result_expires_at IS NOT NULL AND result_deleted_at IS NULL"),
    )
    op.create_index(
        "jobs_running_idx",
        "jobs",
        ["client_id"],
        unique=False,
        schema="jobplatform",
        postgresql_where=sa.text("status = 'running'"),
    )
    op.create_table(
        "attempts",
        sa.Column("token", sa.Uuid(), nullable=False),
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("client_id", sa.Uuid(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("worker", sa.Text(), nullable=False),
        sa.Column("started_at", _TIMESTAMP, server_default=sa.text("now()"), nullable=False),
        sa.Column("finished_at", _TIMESTAMP, nullable=True),
        sa.Column("outcome", sa.Text(), nullable=True),
        sa.Column("error_code", sa.Text(), nullable=True),
        sa.Column("error_detail", sa.Text(), nullable=True),
        sa.Column("rows_written", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("bytes_written", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("as_of", _TIMESTAMP, nullable=True),
        sa.Column("upload_token", sa.Uuid(), nullable=False),
        sa.Column("erased_at", _TIMESTAMP, nullable=True),
        sa.Column("cleaned_at", _TIMESTAMP, nullable=True),
        sa.ForeignKeyConstraint(
            ["job_id"],
            ["jobplatform.jobs.id"],
            name=op.f("attempts_job_id_fkey"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("token", name=op.f("attempts_pkey")),
        schema="jobplatform",
    )
    op.create_index(
        "attempts_job_id_idx", "attempts", ["job_id", "number"], unique=False, schema="jobplatform"
    )
    op.create_index(
        "attempts_to_clean_idx",
        "attempts",
        ["finished_at"],
        unique=False,
        schema="jobplatform",
        postgresql_where=sa.text("finished_at IS NOT NULL AND cleaned_at IS NULL"),
    )
    op.create_table(
        "transitions",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("client_id", sa.Uuid(), nullable=False),
        sa.Column("at", _TIMESTAMP, server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.Column("from_status", sa.Text(), nullable=False),
        sa.Column("to_status", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["job_id"],
            ["jobplatform.jobs.id"],
            name=op.f("transitions_job_id_fkey"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("transitions_pkey")),
        schema="jobplatform",
    )
    op.create_index(
        op.f("transitions_job_id_idx"),
        "transitions",
        ["job_id"],
        unique=False,
        schema="jobplatform",
    )
    for statement in (_ROLE, _MEMBER, _GUARD, _SECURITY):
        op.execute(statement)

"""Sweeps: many recipes on one model, whose members are ordinary jobs."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
INSTANT = sa.DateTime(timezone=True)
STATUSES = "'canceled', 'canceling', 'failed', 'finished', 'paused', 'running'"
ENDED = "'canceled', 'failed', 'finished'"


def upgrade() -> None:
    op.create_table(
        "sweeps",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("tenant", sa.String(length=64), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("last_event", sa.Integer(), nullable=False),
        sa.Column("request", JSON, nullable=False),
        sa.Column("sweep", JSON, nullable=False),
        sa.Column("model_name", sa.String(length=256), nullable=False),
        sa.Column("source_commit", sa.String(length=64), nullable=True),
        sa.Column("max_parallel", sa.Integer(), nullable=False),
        sa.Column("beside", JSON, nullable=False),
        sa.Column("waits_for", sa.String(length=200), nullable=True),
        sa.Column("sealed_token", sa.Text(), nullable=True),
        sa.Column("created_at", INSTANT, nullable=False),
        sa.Column("finished_at", INSTANT, nullable=True),
        sa.Column("estimated_finish_at", INSTANT, nullable=True),
        sa.Column("traceparent", sa.String(length=64), nullable=True),
        sa.CheckConstraint(f"status IN ({STATUSES})", name=op.f("ck_sweeps_sweep_status_known")),
        sa.CheckConstraint(
            f"(finished_at IS NOT NULL) = (status IN ({ENDED}))",
            name=op.f("ck_sweeps_sweep_finished_iff_ended"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_sweeps")),
    )
    op.create_index(op.f("ix_sweeps_status"), "sweeps", ["status"])
    op.create_index(
        op.f("ix_sweeps_tenant_created_at_id"), "sweeps", ["tenant", "created_at", "id"]
    )
    op.create_table(
        "sweep_members",
        sa.Column("sweep_id", sa.String(length=40), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("fields", JSON, nullable=False),
        sa.Column("recipe", JSON, nullable=False),
        sa.Column("recipe_sha256", sa.String(length=64), nullable=False),
        sa.Column("estimate", JSON, nullable=True),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("stopped", sa.String(length=16), nullable=True),
        sa.Column("job_id", sa.String(length=40), nullable=True),
        sa.Column("row", JSON, nullable=True),
        sa.Column("error", JSON, nullable=True),
        _of_a_sweep("sweep_members"),
        sa.PrimaryKeyConstraint("sweep_id", "number", name=op.f("pk_sweep_members")),
    )
    op.create_index(op.f("ix_sweep_members_job_id"), "sweep_members", ["job_id"])
    op.create_table(
        "sweep_events",
        sa.Column("sweep_id", sa.String(length=40), nullable=False),
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.Column("at", INSTANT, nullable=False),
        sa.Column("type", sa.String(length=16), nullable=False),
        sa.Column("data", JSON, nullable=False),
        _of_a_sweep("sweep_events"),
        sa.PrimaryKeyConstraint("sweep_id", "seq", name=op.f("pk_sweep_events")),
    )
    op.add_column("jobs", sa.Column("sweep_id", sa.String(length=40), nullable=True))
    op.add_column("jobs", sa.Column("sweep_member", sa.Integer(), nullable=True))


def downgrade() -> None:
    for column in ("sweep_member", "sweep_id"):
        op.drop_column("jobs", column)
    for table in ("sweep_events", "sweep_members", "sweeps"):
        op.drop_table(table)


def _of_a_sweep(table: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(
        ["sweep_id"], ["sweeps.id"], name=op.f(f"fk_{table}_sweep_id"), ondelete="CASCADE"
    )

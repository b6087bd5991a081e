"""Workers that are there, expired artifacts, jobs' own Hub tokens, traces."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
INSTANT = sa.DateTime(timezone=True)


def upgrade() -> None:
    _keep_counts_out_of_the_log(yes=True)
    op.create_table(
        "workers",
        sa.Column("id", sa.String(length=128), nullable=False),
        sa.Column("seen_at", INSTANT, nullable=False),
        sa.Column("facts", JSON, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_workers")),
    )
    op.create_table(
        "job_secrets",
        sa.Column("job_id", sa.String(length=40), nullable=False),
        sa.Column("sealed", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name=op.f("fk_job_secrets_job_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("job_id", name=op.f("pk_job_secrets")),
    )
    op.add_column("jobs", sa.Column("artifact_expired_at", INSTANT, nullable=True))
    op.add_column("jobs", sa.Column("traceparent", sa.String(length=64), nullable=True))


def downgrade() -> None:
    for column in ("traceparent", "artifact_expired_at"):
        op.drop_column("jobs", column)
    for table in ("job_secrets", "workers"):
        op.drop_table(table)
    _keep_counts_out_of_the_log(yes=False)


def _keep_counts_out_of_the_log(*, yes: bool) -> None:
    """Counts of a minute's requests may be lost in a crash; each need not wait for the disk."""
    if op.get_bind().dialect.name == "postgresql":
        op.execute(f"ALTER TABLE rate_windows SET {'UNLOGGED' if yes else 'LOGGED'}")

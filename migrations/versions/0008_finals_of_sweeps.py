"""Members of a sweep that are measured once more at its end."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")


def upgrade() -> None:
    op.add_column("sweep_members", sa.Column("final_job_id", sa.String(length=40), nullable=True))
    op.add_column("sweep_members", sa.Column("final_status", sa.String(length=16), nullable=True))
    op.add_column("sweep_members", sa.Column("final", JSON, nullable=True))
    op.create_index(op.f("ix_sweep_members_final_job_id"), "sweep_members", ["final_job_id"])


def downgrade() -> None:
    op.drop_index(op.f("ix_sweep_members_final_job_id"), "sweep_members")
    for column in ("final", "final_status", "final_job_id"):
        op.drop_column("sweep_members", column)

"""Numbers of metrics that API processes and workers add to; when jobs were deleted."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "tallies",
        sa.Column("metric", sa.String(length=64), nullable=False),
        sa.Column("labels", sa.String(length=256), nullable=False),
        sa.Column("value", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("metric", "labels", name=op.f("pk_tallies")),
    )
    for name in ("deleted_at", "finished_at"):
        op.add_column("deleted_usage", sa.Column(name, sa.DateTime(timezone=True), nullable=True))


def downgrade() -> None:
    for name in ("finished_at", "deleted_at"):
        op.drop_column("deleted_usage", name)
    op.drop_table("tallies")

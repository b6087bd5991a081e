"""Headline figures of jobs, to sort lists by; why the last attempt ended."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
FIGURES = ("bytes_ratio", "kl", "perplexity_ratio")


def upgrade() -> None:
    op.add_column("jobs", sa.Column("last_attempt", JSON, nullable=True))
    for name in FIGURES:
        op.add_column("jobs", sa.Column(name, sa.Double(), nullable=True))


def downgrade() -> None:
    for name in (*FIGURES, "last_attempt"):
        op.drop_column("jobs", name)

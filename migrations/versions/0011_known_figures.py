"""Figures of sources and of plain INT8 that all workers know."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "known_figures",
        sa.Column("source", sa.String(length=64), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=80), nullable=False),
        sa.Column("content", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("source", "digest", "name", name=op.f("pk_known_figures")),
    )
    op.create_index(op.f("ix_known_figures_created_at"), "known_figures", ["created_at"])


def downgrade() -> None:
    op.drop_table("known_figures")

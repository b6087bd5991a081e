"""Sessions of browsers, and codes that begin one."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

INSTANT = sa.DateTime(timezone=True)


def upgrade() -> None:
    for table in ("sessions", "login_codes"):
        op.create_table(
            table,
            sa.Column("sha256", sa.String(length=64), nullable=False),
            sa.Column("key_id", sa.String(length=40), nullable=False),
            sa.Column("created_at", INSTANT, nullable=False),
            sa.Column("expires_at", INSTANT, nullable=False),
            sa.ForeignKeyConstraint(
                ["key_id"], ["api_keys.id"], name=op.f(f"fk_{table}_key_id"), ondelete="CASCADE"
            ),
            sa.PrimaryKeyConstraint("sha256", name=op.f(f"pk_{table}")),
        )
        op.create_index(op.f(f"ix_{table}_key_id"), table, ["key_id"])


def downgrade() -> None:
    for table in ("login_codes", "sessions"):
        op.drop_table(table)

"""Indexes for filtered lists, made without stopping writers: a live table may be large.

Making one this way cannot be rolled back, so they have a migration of their own, which can be repeated.
"""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

LISTS = {
    "ix_jobs_tenant_status_created_at_id": ["tenant", "status", "created_at", "id"],
    "ix_jobs_tenant_model_name_created_at_id": ["tenant", "model_name", "created_at", "id"],
}


def upgrade() -> None:
    with op.get_context().autocommit_block():
        postgres = op.get_bind().dialect.name == "postgresql"
        if postgres:
            # It waits for transactions that began before; nobody waits for it.
            op.execute("SET lock_timeout = 0")
        for name, columns in LISTS.items():
            op.drop_index(name, "jobs", if_exists=True, postgresql_concurrently=True)
            op.create_index(name, "jobs", columns, postgresql_concurrently=True)
        if postgres:
            op.execute("RESET lock_timeout")  # the next migrations are waited for


def downgrade() -> None:
    with op.get_context().autocommit_block():
        for name in LISTS:
            op.drop_index(name, "jobs", if_exists=True, postgresql_concurrently=True)

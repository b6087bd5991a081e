"""An index for the jobs of a sweep, made without stopping writers; see 0003."""

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

NAME = "ix_jobs_sweep_id"


def upgrade() -> None:
    with op.get_context().autocommit_block():
        postgres = op.get_bind().dialect.name == "postgresql"
        if postgres:
            op.execute("SET lock_timeout = 0")  # it waits for transactions that began before
        op.drop_index(NAME, "jobs", if_exists=True, postgresql_concurrently=True)
        op.create_index(NAME, "jobs", ["sweep_id"], postgresql_concurrently=True)
        if postgres:
            op.execute("RESET lock_timeout")


def downgrade() -> None:
    with op.get_context().autocommit_block():
        op.drop_index(NAME, "jobs", if_exists=True, postgresql_concurrently=True)

"""Numbers of metrics that API processes and workers add to; when jobs were deleted; ended jobs stay ended."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

ENDED = "OLD.status IN ('succeeded', 'failed', 'canceled') AND NEW.status <> OLD.status"
REFUSE = {
    "postgresql": (
        """CREATE FUNCTION refuse_to_reopen_job() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            RAISE EXCEPTION 'job % has ended', OLD.id USING ERRCODE = 'integrity_constraint_violation';
        END $$""",
        f"""CREATE TRIGGER jobs_stay_ended BEFORE UPDATE OF status ON jobs FOR EACH ROW
        WHEN ({ENDED}) EXECUTE FUNCTION refuse_to_reopen_job()""",
    ),
    "sqlite": (
        f"""CREATE TRIGGER jobs_stay_ended BEFORE UPDATE OF status ON jobs WHEN {ENDED}
        BEGIN SELECT RAISE(ABORT, 'the job has ended'); END""",
    ),
}
ALLOW = {
    "postgresql": (
        "DROP TRIGGER jobs_stay_ended ON jobs",
        "DROP FUNCTION refuse_to_reopen_job()",
    ),
    "sqlite": ("DROP TRIGGER jobs_stay_ended",),
}


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
    _execute(REFUSE)  # last: while this waits, nobody waits for us


def downgrade() -> None:
    _execute(ALLOW)
    for name in ("finished_at", "deleted_at"):
        op.drop_column("deleted_usage", name)
    op.drop_table("tallies")


def _execute(statements: dict[str, tuple[str, ...]]) -> None:
    for statement in statements[op.get_bind().dialect.name]:
        op.execute(statement)

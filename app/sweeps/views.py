"""A sweep's rows as clients see them."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from app.db.sweep_models import SweepMember, SweepRow
from app.domain.job_status import JobStatus
from app.domain.sweep_status import MEMBER_ENDED
from app.sweeps.schemas import MemberView, SweepSummary, SweepView
from spq_core.sweep.document import parse_sweep
from spq_core.sweep.front import judge
from spq_core.sweep.search import Tried

LINKS = ("cancel", "pause", "resume", "retry", "events", "members.csv")


def sweep_url(sweep_id: str) -> str:
    """Where a sweep is."""
    return f"/sweeps/{sweep_id}"


def tried(members: Sequence[SweepMember]) -> list[Tried]:
    """What is known of members, for the rules of a search."""
    return [
        Tried(
            one.fields, one.status in MEMBER_ENDED, one.row if one.status == JobStatus.SUCCEEDED else None
        )
        for one in members
    ]  # fmt: skip


def sweep_summary(row: SweepRow, members: Sequence[SweepMember]) -> SweepSummary:
    """A sweep in a list."""
    return SweepSummary.model_validate(_summary(row, members))


def sweep_view(row: SweepRow, members: Sequence[SweepMember]) -> SweepView:
    """A sweep with its members, and how they compare."""
    done = {one.number: one.row for one in members if one.status == JobStatus.SUCCEEDED and one.row}
    return SweepView.model_validate(
        {
            **_summary(row, members),
            "sweep": row.sweep,
            "evaluation": row.request["evaluation"],
            "max_parallel": row.max_parallel,
            "members": [MemberView.model_validate(one) for one in members],
            "beside": row.beside,
            **judge(parse_sweep(row.sweep), done).document(),
            "waits_for": row.waits_for,
            "estimated_finish_at": row.estimated_finish_at,
        }
    )


def _summary(row: SweepRow, members: Sequence[SweepMember]) -> dict[str, Any]:
    base = sweep_url(row.id)
    return {
        "id": row.id, "name": row.sweep["name"], "status": row.status, "model": row.model_name,
        "source_commit": row.source_commit, "counts": dict(Counter(one.status for one in members)),
        "labels": row.request["labels"], "version": row.version, "created_at": row.created_at,
        "finished_at": row.finished_at,
        "urls": {"self": base, **{name: f"{base}/{name}" for name in LINKS}, "jobs": f"/jobs?sweep={row.id}"},
    }  # fmt: skip

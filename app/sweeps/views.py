"""A sweep's rows as clients see them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from app.db.sweep_models import SweepMember, SweepRow
from app.domain.job_status import JobStatus
from app.domain.sweep_status import MEMBER_ENDED
from app.sweeps.schemas import MemberView, SweepSummary, SweepView
from spq_core.errors import RecipeError
from spq_core.sweep.document import parse_sweep
from spq_core.sweep.front import Verdict, judge
from spq_core.sweep.search import Tried

LINKS = ("cancel", "pause", "resume", "retry", "events", "members.csv")


def sweep_url(sweep_id: str) -> str:
    """Where a sweep is."""
    return f"/sweeps/{sweep_id}"


def tried(members: Sequence[SweepMember]) -> list[Tried]:
    """What is known of members, for the rules of a search."""
    unsuccessful = {JobStatus.FAILED, JobStatus.CANCELED}
    return [
        Tried(one.fields, one.recipe_sha256, one.status in MEMBER_ENDED, one.status in unsuccessful, one.row)
        for one in members
    ]  # fmt: skip


def verdict(row: SweepRow, members: Sequence[SweepMember]) -> Verdict:
    """How the members compare that succeeded; of a document that this version does not read, nothing."""
    done = {one.number: one.row for one in members if one.status == JobStatus.SUCCEEDED and one.row}
    try:
        return judge(parse_sweep(row.sweep), done)
    except RecipeError:
        return Verdict((), None, ())


def sweep_summary(row: SweepRow, counts: Mapping[str, int]) -> SweepSummary:
    """A sweep in a list."""
    return SweepSummary.model_validate(_summary(row, counts))


def sweep_view(row: SweepRow, members: Sequence[SweepMember]) -> SweepView:
    """A sweep with its members, and how they compare."""
    return SweepView.model_validate(
        {
            **_summary(row, Counter(one.status for one in members)),
            "sweep": row.sweep,
            "evaluation": row.request["evaluation"],
            "max_parallel": row.max_parallel,
            "members": [member_view(one) for one in members],
            "beside": row.beside,
            **verdict(row, members).document(),
            "waits_for": row.waits_for,
            "estimated_finish_at": row.estimated_finish_at,
        }
    )


def member_view(member: SweepMember) -> MemberView:
    """A member as clients see it."""
    final = None
    if member.final_job_id is not None:
        final = {
            "job_id": member.final_job_id,
            "status": member.final_status,
            **(member.final or {}),
        }
    columns = {name: getattr(member, name) for name in MemberView.model_fields if name != "final"}
    return MemberView.model_validate(columns | {"final": final})


def _summary(row: SweepRow, counts: Mapping[str, int]) -> dict[str, Any]:
    base = sweep_url(row.id)
    return {
        "id": row.id, "name": row.sweep["name"], "status": row.status, "model": row.model_name,
        "source_commit": row.source_commit, "counts": dict(counts),
        "labels": row.request["labels"], "version": row.version, "created_at": row.created_at,
        "finished_at": row.finished_at,
        "urls": {"self": base, **{name: f"{base}/{name}" for name in LINKS}, "jobs": f"/jobs?sweep={row.id}"},
    }  # fmt: skip

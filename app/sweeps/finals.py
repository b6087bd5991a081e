"""Which members of a sweep are measured once more when all have ended, and what those jobs are asked for."""

from collections.abc import Sequence
from typing import Any

from app.db.models import Job
from app.db.sweep_models import SweepMember, SweepRow
from app.domain.job_status import TERMINAL, JobStatus
from app.sweeps.views import verdict
from spq_core.sweep.document import Finals, Sweep
from spq_core.sweep.outcome import compared

MOST_FINALISTS = 8
MOST_TEXTS = 4


def finals_of(row: SweepRow, sweep: Sweep) -> Finals | None:
    """What is asked for: by the document, or for the sake of publishing the best."""
    publishes = row.request.get("publish") is not None
    return sweep.finals or (Finals(throughput=False) if publishes else None)


def winners(row: SweepRow, members: Sequence[SweepMember], finals: Finals | None) -> list[int]:
    """Numbers of the members that are measured once more, the best first."""
    if finals is None:
        return []
    found = verdict(row, members)
    best = [] if found.best is None else [found.best]
    others = found.front if finals.members == "front" else ()
    return [*best, *(one for one in others if one not in best)][:MOST_FINALISTS]


def is_open(row: SweepRow, member: SweepMember, best: int | None) -> bool:
    """Whether a winner's final is still to be made: there was none, or the best one's was not to publish it."""
    if member.final is None:
        return True
    ended = member.final_status in TERMINAL
    return ended and publishes(row, member, best) and not member.final["publishes"]


def publishes(row: SweepRow, member: SweepMember, best: int | None) -> bool:
    """Whether a winner's final puts it on the Hub."""
    return member.number == best and row.request.get("publish") is not None


def final_request(
    row: SweepRow, member: SweepMember, finals: Finals, best: int | None
) -> dict[str, Any]:
    """What changes of a member's own request."""
    evaluation = row.request["evaluation"]
    texts = dict.fromkeys((*finals.confirm_on, *evaluation["perplexity"]))
    return {
        "measure_of": member.job_id,
        "evaluation": evaluation
        | {
            "throughput": finals.throughput, "perplexity": list(texts)[:MOST_TEXTS],
            "limit": finals.limit or evaluation["limit"],
            "tasks": list(dict.fromkeys((*evaluation["tasks"], *finals.tasks))),
        },
        "output": row.request["publish"] if publishes(row, member, best) else None,
    }  # fmt: skip


def final_outcome(member: SweepMember, job: Job | None) -> dict[str, Any]:
    """What a member's final came to, as the sweep keeps it."""
    known = {"publishes": (member.final or {}).get("publishes", False)}
    if job is None:
        return known
    result = job.result or {}
    if result.get("rows"):
        row, beside = compared(result["rows"])
        known |= {"row": row, "beside": beside}
    more = {"error": job.error, "published": result.get("published")}
    return known | {name: value for name, value in more.items() if value is not None}


def is_final_active(member: SweepMember) -> bool:
    """Whether its final is on its way."""
    return member.final_job_id is not None and JobStatus(str(member.final_status)) not in TERMINAL

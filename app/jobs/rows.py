"""Jobs in rows, as lists and streams show them."""

from collections.abc import Mapping, Sequence
from typing import Any

from app.db.models import Job
from app.db.waiting_jobs import QueuePlace
from app.jobs.schemas import JobRow
from app.jobs.views import job_verdict, queue_view, stages
from spq_core.evaluation.certainty import compared_with_source

KEPT = (
    "id", "status", "version", "sweep_id", "sweep_member", "attempt", "max_attempts", "last_attempt", "stage",
    "error", "created_at", "started_at", "finished_at", "artifact_expired_at",
)  # fmt: skip
OF_RESULT = (
    "dataset", "windows", "tokens", "bytes_on_disk", "perplexity", "perplexity_se", "perplexity_ratio",
    "perplexity_ratio_se", "kl", "kl_se", "top1", "retention",
)  # fmt: skip


def job_row(job: Job, places: Mapping[str, QueuePlace]) -> JobRow:
    """A job in a row."""
    planned = stages(job)
    progress = job.progress or {}
    result = job.result or {}
    running = [at for at, one in enumerate(planned, start=1) if one["state"] == "running"]
    return JobRow.model_validate(
        {
            **{name: getattr(job, name) for name in KEPT},
            "model": job.model_name,
            "recipe": job.recipe["metadata"]["name"],
            "labels": job.request.get("labels", {}),
            "stage_number": running[-1] if running else None,
            "stage_count": len(planned),
            "overall_fraction": progress.get("overall_fraction"),
            "estimated_finish_at": progress.get("estimated_finish_at"),
            "queue": queue_view(places.get(job.id)),
            "verdict": job_verdict(job),
            "figures": headline_figures(result.get("rows") or []),
            "missing": (result.get("missing") or {}).get("message"),
            "published": (result.get("published") or {}).get("repo_id"),
        }
    )


def headline_figures(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Of the result, beside the source."""
    if not rows:
        return None
    source, row = rows[0], rows[-1]
    own, other = (one.get("decode_tokens_per_second") for one in (row, source))
    return {name: row.get(name) for name in OF_RESULT} | {
        "bytes_ratio": row["bytes_on_disk"] / source["bytes_on_disk"],
        "source_perplexity": source.get("perplexity"),
        "compared": compared_with_source(row),
        "decode_ratio": own / other if own and other else None,
    }

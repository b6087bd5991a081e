"""A job's row as clients see it."""

from collections.abc import Mapping
from typing import Any

from app.db.models import Job
from app.db.waiting_jobs import QueuePlace
from app.domain.job_status import TERMINAL, JobStatus
from app.jobs.requests import JobSubmission
from app.jobs.schemas import JobPlan, JobView, QueueView, StageView
from spq_core.estimate.estimate import Estimate
from spq_core.estimate.stages import Stage, requested_stages
from spq_core.evaluation.verdict import verdict
from spq_core.recipe.document import Recipe

LINKS = ("cancel", "retry", "measure", "events", "logs", "metrics", "layers", "artifacts")


def queue_view(place: QueuePlace | None) -> QueueView | None:
    """A queued job's place."""
    return None if place is None else QueueView.model_validate(place)


def plan_view(
    body: JobSubmission,
    recipe: Recipe,
    looked: tuple[Estimate, str | None] | None,
    place: QueuePlace,
) -> JobPlan:
    """What a job would be."""
    estimate, commit = looked or (None, None)
    request = body.model_dump(mode="json")
    return JobPlan(
        model=body.model.name, source_commit=commit, recipe=recipe.document(),
        recipe_sha256=recipe.sha256(), estimate=None if estimate is None else estimate.document(),
        queue=QueueView.model_validate(place),
        stages=[
            StageView(**stage._asdict(), state="planned")
            for stage in requested_stages(recipe.document(), request)
        ],
    )  # fmt: skip


def job_view(job: Job, queue: QueueView | None = None) -> JobView:
    """The public fields of a job."""
    base = f"/jobs/{job.id}"
    return JobView.model_validate(
        {
            **{name: getattr(job, name) for name in JobView.model_fields if hasattr(job, name)},
            "model": job.model_name,
            "labels": job.request.get("labels", {}),
            "queue": queue,
            "stages": stages(job),
            "verdict": job_verdict(job),
            "urls": {"self": base, **{name: f"{base}/{name}" for name in LINKS}},
        }
    )


def job_verdict(job: Job) -> dict[str, str] | None:
    """Its result beside plain INT8."""
    found = verdict((job.result or {}).get("rows") or [])
    return None if found is None else found.document()


def stages(job: Job) -> list[dict[str, Any]]:
    """Planned stages, and how far each is; none of a request that this version does not read."""
    planned = requested_stages(job.recipe, job.request)
    progress = job.progress or {}
    times: Mapping[str, Mapping[str, Any]] = progress.get("stages", {})
    if job.status == JobStatus.QUEUED:  # what an earlier attempt did is no progress of the next one
        times = {}
    if job.status == JobStatus.SUCCEEDED and not times:
        return []  # of a version that did not note them
    begun = [at for at, one in enumerate(planned) if one.id in times]
    last = max(begun, default=-1)
    return [
        {
            **stage._asdict(),
            **_ended(times.get(stage.id, {}), job),
            "state": _state(job, stage, times, is_passed=at < last),
        }
        for at, stage in enumerate(planned)
    ]


def _ended(times: Mapping[str, Any], job: Job) -> dict[str, Any]:
    """The stage that a job ended in has ended with it."""
    is_open = bool(times) and times.get("ended_at") is None and job.finished_at is not None
    return {**times, **({"ended_at": job.finished_at} if is_open else {})}


def _state(
    job: Job, stage: Stage, times: Mapping[str, Mapping[str, Any]], *, is_passed: bool
) -> str:
    known = times.get(stage.id)
    if known is None:
        return "skipped" if is_passed or job.status == JobStatus.SUCCEEDED else "planned"
    if known.get("ended_at") is not None or job.status == JobStatus.SUCCEEDED:
        return "done"
    return "stopped" if job.status in TERMINAL else "running"

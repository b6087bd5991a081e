"""A job's row as clients see it."""

from app.db.models import Job
from app.jobs.schemas import JobView

LINKS = ("cancel", "retry", "events", "logs", "metrics", "layers", "artifacts")


def job_view(job: Job) -> JobView:
    """The public fields of a job."""
    base = f"/jobs/{job.id}"
    return JobView.model_validate(
        {
            **{name: getattr(job, name) for name in JobView.model_fields if hasattr(job, name)},
            "model": job.model_name,
            "labels": job.request.get("labels", {}),
            "urls": {"self": base, **{name: f"{base}/{name}" for name in LINKS}},
        }
    )

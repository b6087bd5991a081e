"""Follow a job over HTTP with a progress display."""

from typing import Any

from app.client.http import Client
from spq_core.console import ConsoleProgress


def follow(client: Client, job_id: str) -> dict[str, Any]:
    """Show a job's stages until it has ended; return it."""
    progress = ConsoleProgress()
    job: dict[str, Any] = {}
    stage = ""
    try:
        for job in client.watch(job_id):
            state = job["progress"]
            if job["status"] == "queued" and stage != "queued":
                stage = "queued"
                progress.stage("queued, waiting for a worker", 1, "job")
            if job["status"] != "running" or state is None:
                continue
            if state["stage"] != stage:
                stage = state["stage"]
                progress.stage(stage, state["total"], state["unit"])
            progress.advance_to(state["done"], state["message"])
    finally:
        progress.close()
    return job

"""Follow a job over HTTP with a progress display."""

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from app.client.http import ApiError, Client
from spq_core.cli.console import ConsoleProgress


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
                progress.show(_why_queued(client, job), 1, "job")
            if job["status"] != "running" or state is None:
                continue
            if state["stage"] != stage:
                stage = state["stage"]
                progress.show(stage, state["total"], state["unit"])
            progress.advance_to(state["done"], state["message"])
    finally:
        progress.close()
    return job


def _why_queued(client: Client, job: dict[str, Any]) -> str:
    """It waits for a worker, or for another try after an attempt that ended without a result."""
    if job["attempt"] == 0:
        return "queued, waiting for a worker"
    why = ""
    with suppress(ApiError):  # it is only for information
        reasons = [
            one["data"]["reason"] for one in _events(client, job["id"]) if one["data"].get("reason")
        ]
        why = f" ({reasons[-1]}; `spq jobs logs {job['id']}` tells more)" if reasons else ""
    return f"queued, to be tried again after attempt {job['attempt']}{why}"


def _events(client: Client, job_id: str) -> Iterator[dict[str, Any]]:
    after, more = 0, True
    while more:
        page = client.call("GET", f"/jobs/{job_id}/events", after=after, limit=1000)
        yield from page["data"]
        after, more = page["next_after"], page["has_more"]

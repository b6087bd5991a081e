"""Follow a job over HTTP with a progress display: the whole job, with the service's own estimate of its end."""

import sys
import time
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from app.client.http import Client
from app.client.tables import duration, left, place

LINE_EVERY_SECONDS = 5.0


def follow(client: Client, job_id: str) -> dict[str, Any]:
    """Show how far a job is until it has ended; return it."""
    display = _Bar() if sys.stderr.isatty() else _Lines()
    job: dict[str, Any] = {}
    try:
        for job in client.watch(job_id):
            display.show(job)
    finally:
        display.close()
    return job


def _words(job: dict[str, Any]) -> str:
    if job["status"] == "queued":
        if job["last_attempt"]:
            return (
                f"queued, to be tried again after attempt {job['last_attempt']['number']} "
                f"({job['last_attempt']['reason']}; `spq jobs logs {job['id']}` tells more)"
            )
        return f"queued, {place(job['queue'])}" if job["queue"] else "queued, waiting for a worker"
    progress = job["progress"]
    if progress is None:
        return str(job["stage"] or job["status"])
    running = [at for at, one in enumerate(job["stages"], start=1) if one["state"] == "running"]
    where = f"stage {running[-1]} of {len(job['stages'])}: " if running else ""
    return f"{where}{progress['stage']}, {progress['done']} of {progress['total']} {progress['unit']}{left(progress['estimated_finish_at'])}"


class _Bar:
    """On a terminal."""

    def __init__(self) -> None:
        self._progress = Progress(
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%  {task.description}"),
            console=Console(stderr=True),
        )
        self._task = self._progress.add_task("", total=1.0)
        self._progress.start()

    def show(self, job: dict[str, Any]) -> None:
        done = (job["progress"] or {}).get("overall_fraction") or 0.0
        if job["status"] == "succeeded":
            done = 1.0
        self._progress.update(self._task, completed=done, description=_words(job))

    def close(self) -> None:
        self._progress.stop()


class _Lines:
    """Elsewhere: a line when the stage changes, and now and then between."""

    def __init__(self) -> None:
        self._stage, self._last, self._began = "", 0.0, time.monotonic()

    def show(self, job: dict[str, Any]) -> None:
        stage = f"{job['status']} {(job['progress'] or {}).get('stage')}"
        is_due = time.monotonic() - self._last > LINE_EVERY_SECONDS
        if job["status"] in {"queued", "running", "canceling"} and (stage != self._stage or is_due):
            self._stage, self._last = stage, time.monotonic()
            click.echo(f"{duration(time.monotonic() - self._began)}  {_words(job)}", err=True)

    def close(self) -> None:
        """Nothing is left open."""

"""`spq worker`: one Celery worker with one supervising child."""

import os
import sys

import click

from app.queue import JOB_QUEUE
from worker.settings import WorkerSettings


def celery_arguments(name: str) -> list[str]:
    """Command line of a worker: prefork with one child, as `disable_prefetch` needs prefork."""
    return [
        sys.executable, "-m", "celery", "-q", "-A", "worker.tasks", "worker", "-P", "prefork", "-c", "1",
        "-Q", JOB_QUEUE, "-n", name, "--without-gossip", "--without-mingle", "--without-heartbeat",
        "-l", "WARNING",
    ]  # fmt: skip


@click.command("worker")
@click.option("--name", default="worker@%h", show_default=True, help="Unique among all workers.")
def worker_command(name: str) -> None:
    """Run a worker; settings come from SPQ_* variables. Start one per accelerator."""
    WorkerSettings()  # a missing variable is named here, before Celery starts
    arguments = celery_arguments(name)
    os.execv(arguments[0], arguments)  # noqa: S606  becomes the worker, so that signals reach it

"""Wait for jobs, and end as they did."""

import json
import sys
from collections.abc import Sequence
from typing import Any

import click

from app.client.follow import follow
from app.client.http import ApiError, Client
from app.client.ids import job_id_of
from app.client.tables import job_page

EXIT_CODES = {"succeeded": 0, "failed": 1, "canceled": 3}
INTERRUPTED, TIMED_OUT = 130, 124


def labels_of(given: Sequence[str]) -> dict[str, str]:
    """Labels from name=value.

    Raises:
        click.BadParameter: one is not.
    """
    for one in given:
        if "=" not in one:
            raise click.BadParameter(f"{one!r} is no name=value", param_hint="--label")
    return dict(one.split("=", 1) for one in given)


def wait_for(
    client: Client, job_ids: Sequence[str], labels: Sequence[str], timeout: int | None
) -> None:
    """Wait, say how each ended, and exit."""
    ids = [job_id_of(client, one) for one in job_ids]
    if labels:
        query: dict[str, Any] = {
            f"label.{name}": value for name, value in labels_of(labels).items()
        }
        found = [row["id"] for row in client.rows(**query)]
        if not found:
            raise ApiError("job_not_found", f"no job has the label {' and '.join(labels)}")
        ids += found
    if not ids and not labels:
        raise click.UsageError("name jobs, or --label")
    try:
        ended = client.wait(ids, timeout)
    except KeyboardInterrupt:
        click.echo("the jobs go on", err=True)
        sys.exit(INTERRUPTED)
    for job in ended:
        why = f" {job['error']['code']}: {job['error']['message']}" if job["error"] else ""
        click.echo(f"{job['id']} {job['status']}{why}")
    if len(ended) < len(set(ids)):
        click.echo(
            f"{len(set(ids)) - len(ended)} jobs have not ended in {timeout} s; they go on", err=True
        )
        sys.exit(TIMED_OUT)
    codes = [EXIT_CODES[job["status"]] for job in ended]
    sys.exit(1 if 1 in codes else max(codes, default=0))


def watch_to_the_end(client: Client, job_id: str, *, as_json: bool) -> None:
    """Show progress until the job has ended, then end with its exit code."""
    try:
        job = follow(client, job_id)
    except KeyboardInterrupt:
        click.echo(
            f"the job goes on: spq jobs watch {job_id} follows it again, spq jobs cancel {job_id} stops it",
            err=True,
        )
        sys.exit(INTERRUPTED)
    click.echo(json.dumps(job) if as_json else job_page(job))
    if not as_json and job["status"] == "succeeded":
        click.echo(f"\nartifact: spq jobs download {job_id}")
    sys.exit(EXIT_CODES[job["status"]])

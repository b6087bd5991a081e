"""What belongs to jobs: figures, also side by side, matrices, history, log, files."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from app.client.complete import complete_jobs
from app.client.connection import JSON_OPTION, pass_client
from app.client.ending import INTERRUPTED
from app.client.http import ApiError, Client
from app.client.ids import job_id_of
from app.client.tables import figures_lines, table

JOB = click.argument("job_id", shell_complete=complete_jobs)


@click.command("metrics")
@JOB
@JSON_OPTION
@pass_client
def metrics_command(client: Client, job_id: str, as_json: bool) -> None:
    """Print every measured figure."""
    found = client.call("GET", f"/jobs/{job_id_of(client, job_id)}/metrics")["data"]
    rows = [(one["model"], one["name"], one["dataset"], f"{one['value']:g}") for one in found]
    click.echo(json.dumps(found) if as_json else table(("model", "figure", "text", "value"), rows))


@click.command("layers")
@JOB
@JSON_OPTION
@pass_client
def layers_command(client: Client, job_id: str, as_json: bool) -> None:
    """Print what was done to each matrix."""
    found = _pages(client, f"/jobs/{job_id_of(client, job_id)}/layers")
    rows = [
        (
            one["layer"],
            one["stage"],
            "yes" if one["applied"] else "no",
            ", ".join(
                f"{name} {value:g}"
                for name, value in one["figures"].items()
                if isinstance(value, int | float)
            )
            or one["reason"],
        )
        for one in found
    ]
    click.echo(
        json.dumps(found) if as_json else table(("matrix", "stage", "changed", "figures"), rows)
    )


@click.command("events")
@JOB
@click.option("--problems", is_flag=True, help="Only what went wrong.")
@JSON_OPTION
@pass_client
def events_command(client: Client, job_id: str, problems: bool, as_json: bool) -> None:
    """Print a job's history."""
    found = _pages(client, f"/jobs/{job_id_of(client, job_id)}/events")
    if problems:
        found = [one for one in found if one["data"].get("error") or one["data"].get("reason")]
    if as_json:
        click.echo(json.dumps(found))
        return
    for one in found:
        data = one["data"]
        words = (
            data.get("status") or f"{data.get('stage')}: {data.get('done')} of {data.get('total')}"
        )
        why = data.get("reason") or (data.get("error") or {}).get("message") or ""
        click.echo(f"{one['at']} [{one['attempt']}] {words} {why}".rstrip())


def _pages(client: Client, path: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    after, more = 0, True
    while more:
        page = client.call("GET", path, after=after, limit=1000)
        found += page["data"]
        after, more = page["next_after"], page["has_more"]
    return found


@click.command("logs")
@JOB
@click.option("-f", "--follow", "follows", is_flag=True, help="Go on until the job has ended.")
@click.option("--tail", type=click.IntRange(1, 10_000), help="Begin with the last so many lines.")
@pass_client
def logs_command(client: Client, job_id: str, follows: bool, tail: int | None) -> None:
    """Print what the job's processes wrote, and a line when a stage begins or ends."""
    job_id = job_id_of(client, job_id)
    try:
        for line in client.log_lines(job_id, tail=tail, follows=follows):
            click.echo(f"{line['at']} [{line['attempt']}] {line['text']}")
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


@click.command("download")
@JOB
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="A new folder; by default one named after the job.",
)
@pass_client
def download_command(client: Client, job_id: str, out: Path | None) -> None:
    """Fetch a job's artifact, and compare every file with its digest."""
    from app.client.download import download_artifact  # noqa: PLC0415 - manifests take long to import

    click.echo(download_artifact(client, job_id_of(client, job_id), out))


@click.command("compare")
@click.argument("job_ids", nargs=-1, required=True, shell_complete=complete_jobs)
@JSON_OPTION
@pass_client
def compare_command(client: Client, job_ids: Sequence[str], as_json: bool) -> None:
    """Set figures of jobs side by side that were measured on the same text in the same way.

    \b
    spq jobs compare @last 3fa9 77b0
    """
    ids = [job_id_of(client, one) for one in job_ids]
    jobs = client.call("GET", "/jobs", ids=",".join(ids), limit=100)["data"]
    jobs.sort(key=lambda job: ids.index(job["id"]))
    measured = [job for job in jobs if (job["result"] or {}).get("rows")]
    if as_json:
        click.echo(
            json.dumps([{"id": job["id"], "rows": job["result"]["rows"]} for job in measured])
        )
        return
    if not measured:
        raise ApiError("no_figures", "none of these jobs has figures")
    for job in jobs:
        if job not in measured:
            click.echo(f"{job['id']} ({job['status']}) has no figures", err=True)
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for job in measured:
        groups.setdefault(_measured_on(job), []).append(job)
    if len(groups) > 1:
        click.echo(
            "these jobs were measured on different models, texts or windows: figures of different tables say nothing about one another",
            err=True,
        )
    click.echo("\n\n".join(_side_by_side(group) for group in groups.values()))


def _measured_on(job: dict[str, Any]) -> tuple[Any, ...]:
    """What must be equal for figures to be comparable."""
    source = job["result"]["rows"][0]
    return (
        job["model"],
        job["source_commit"],
        *(source.get(name) for name in ("dataset", "windows", "tokens")),
    )


def _side_by_side(jobs: Sequence[dict[str, Any]]) -> str:
    """One table, with the source and plain INT8 of the first."""
    first = jobs[0]["result"]["rows"]
    rows, sources = list(first[:-1]), [first[0]] * (len(first) - 1)
    for job in jobs:
        own = job["result"]["rows"]
        rows.append({**own[-1], "name": f"{job['recipe']['metadata']['name']} {job['id'][-8:]}"})
        sources.append(own[0])
    return figures_lines(rows, sources)


COMMANDS = (
    compare_command,
    metrics_command,
    layers_command,
    events_command,
    logs_command,
    download_command,
)

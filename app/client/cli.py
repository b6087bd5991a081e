"""`spq jobs`: submit and follow jobs over HTTP. The exit code of `watch` says how the job ended."""

import json
import sys
from pathlib import Path
from typing import Any

import click

from app.client.connection import JSON_OPTION, connection_options, pass_client
from app.client.download import download_artifact
from app.client.follow import follow
from app.client.http import Client
from spq_core.recipe.catalog import DEFAULT, read_request
from spq_core.workflow.card import figures_table, measured_on

EXIT_CODES = {"succeeded": 0, "failed": 1, "canceled": 3}


@click.group("jobs")
@connection_options
@click.pass_context
def jobs_group(context: click.Context, url: str, key_file: Path) -> None:
    """Submit and follow jobs over HTTP."""
    context.obj = (url, key_file)


@jobs_group.command("submit")
@click.argument("model")
@click.option(
    "--recipe", default=DEFAULT, show_default=True, help="Catalog name, or a YAML/JSON file."
)
@click.option("--revision", default="main", show_default=True)
@click.option(
    "--local",
    is_flag=True,
    help="MODEL is a folder name in the service's SPQ_MODEL_DIRS (spq serve --models).",
)
@click.option("--output", help="Hub repository to publish to.")
@click.option("--public", is_flag=True, help="Publish openly; private by default.")
@click.option("--dataset", default="wikitext2", show_default=True, help="Evaluation text.")
@click.option("--limit", type=int, help="Evaluation windows; the whole corpus by default.")
@click.option(
    "--length", type=int, help="Tokens per window; 1024, or the model's context if shorter."
)
@click.option(
    "--throughput/--no-throughput",
    default=True,
    help="Time prefill and decoding; with few windows that takes longer than the rest.",
)
@click.option("--watch", is_flag=True, help="Follow the job to its end.")
@JSON_OPTION
@pass_client
def submit_command(
    client: Client,
    model: str,
    recipe: str,
    revision: str,
    local: bool,
    output: str | None,
    public: bool,
    dataset: str,
    limit: int | None,
    length: int | None,
    throughput: bool,
    watch: bool,
    as_json: bool,
) -> None:
    """Submit a job for MODEL."""
    body: dict[str, Any] = {
        "model": {"path": model} if local else {"repo_id": model, "revision": revision},
        "recipe": read_request(recipe),
        "evaluation": {
            "perplexity": [dataset],
            "limit": limit,
            "length": length,
            "throughput": throughput,
        },
    }
    if not local and "/" not in model:
        click.echo(
            f"treating {model} as a Hub model; use --local for a folder in SPQ_MODEL_DIRS",
            err=True,
        )
    if output:
        body["output"] = {"repo_id": output, "private": not public}
    job = client.call("POST", "/jobs", body)
    if watch:
        click.echo(job["id"], err=True)
        _watch(client, job["id"], as_json=as_json)
    click.echo(json.dumps(job) if as_json else job["id"])


@jobs_group.command("list")
@click.option("--status", type=click.Choice(["queued", "running", "canceling", *EXIT_CODES]))
@click.option("--limit", default=20, show_default=True)
@JSON_OPTION
@pass_client
def list_command(client: Client, status: str | None, limit: int, as_json: bool) -> None:
    """List jobs, newest first."""
    page = client.call("GET", "/jobs", status=status, limit=limit)
    if as_json:
        click.echo(json.dumps(page))
        return
    if not page["data"]:
        click.echo("no jobs", err=True)
    for job in page["data"]:
        click.echo(
            f"{job['id']}  {job['status']:10} {job['recipe']['metadata']['name']:16} {job['model']}"
        )


@jobs_group.command("show")
@click.argument("job_id")
@pass_client
def show_command(client: Client, job_id: str) -> None:
    """Print a job as JSON."""
    click.echo(json.dumps(client.call("GET", f"/jobs/{job_id}"), indent=1))


@jobs_group.command("watch")
@click.argument("job_id")
@JSON_OPTION
@pass_client
def watch_command(client: Client, job_id: str, as_json: bool) -> None:
    """Follow a job; exit code 0 succeeded, 1 failed, 3 canceled."""
    _watch(client, job_id, as_json=as_json)


@jobs_group.command("cancel")
@click.argument("job_id")
@pass_client
def cancel_command(client: Client, job_id: str) -> None:
    """Ask a job to stop."""
    click.echo(client.call("POST", f"/jobs/{job_id}/cancel")["status"])


@jobs_group.command("retry")
@click.argument("job_id")
@click.option("--watch", is_flag=True, help="Follow the new job to its end.")
@JSON_OPTION
@pass_client
def retry_command(client: Client, job_id: str, watch: bool, as_json: bool) -> None:
    """Submit a failed or canceled job again, as a new one."""
    job = client.call("POST", f"/jobs/{job_id}/retry")
    if watch:
        click.echo(job["id"], err=True)
        _watch(client, job["id"], as_json=as_json)
    click.echo(json.dumps(job) if as_json else job["id"])


@jobs_group.command("measure")
@click.argument("job_id")
@click.option("--dataset", help="Another text than the job's.")
@click.option("--limit", type=click.IntRange(1), help="Windows of it.")
@click.option("--length", type=click.IntRange(16), help="Tokens per window.")
@click.option("--tasks", help="Tasks by name, separated by commas.")
@click.option("--task-limit", type=click.IntRange(1), help="Questions of each task.")
@click.option("--watch", is_flag=True, help="Follow the new job to its end.")
@JSON_OPTION
@pass_client
def measure_command(
    client: Client,
    job_id: str,
    dataset: str | None,
    limit: int | None,
    length: int | None,
    tasks: str | None,
    task_limit: int | None,
    watch: bool,
    as_json: bool,
) -> None:
    """Measure the artifact of a job that has ended, as a new job that compresses nothing."""
    body: dict[str, Any] = {}
    if dataset or limit or length or tasks or task_limit:
        before = client.call("GET", f"/jobs/{job_id}")["request"]["evaluation"]
        changes = {"perplexity": [dataset] if dataset else None, "limit": limit, "length": length, "task_limit": task_limit,
                   "tasks": tasks.split(",") if tasks else None}  # fmt: skip
        chosen = {name: value for name, value in changes.items() if value}
        body["evaluation"] = before | chosen
    job = client.call("POST", f"/jobs/{job_id}/measure", body)
    if watch:
        click.echo(job["id"], err=True)
        _watch(client, job["id"], as_json=as_json)
    click.echo(json.dumps(job) if as_json else job["id"])


@jobs_group.command("logs")
@click.argument("job_id")
@pass_client
def logs_command(client: Client, job_id: str) -> None:
    """Print what the job's processes wrote."""
    after, more = 0, True
    while more:
        page = client.call("GET", f"/jobs/{job_id}/logs", after=after)
        for line in page["data"]:
            click.echo(f"{line['at']} [{line['attempt']}] {line['text']}")
        after, more = page["next_after"], page["has_more"]


@jobs_group.command("download")
@click.argument("job_id")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="A new folder; by default one named after the job.",
)
@pass_client
def download_command(client: Client, job_id: str, out: Path | None) -> None:
    """Fetch a job's artifact, and compare every file with its digest."""
    click.echo(download_artifact(client, job_id, out))


def _watch(client: Client, job_id: str, *, as_json: bool) -> None:
    """Show progress until the job has ended, then end with its exit code."""
    job = follow(client, job_id)
    if as_json:
        click.echo(json.dumps(job))
    elif job["error"]:
        click.echo(f"{job['status']}: {job['error']['code']}: {job['error']['message']}")
    else:
        click.echo(f"{job_id} {job['status']}")
        if job["result"]:
            rows, missing = job["result"]["rows"], job["result"].get("missing")
            if rows:
                click.echo(figures_table(rows))
                click.echo(f"perplexity: {measured_on(job['result']['evaluation'], rows[-1])}")
            if missing:
                click.echo(f"no figures: {missing['message']}; the artifact is complete")
            click.echo(f"artifact: spq jobs download {job_id}")
    sys.exit(EXIT_CODES[job["status"]])

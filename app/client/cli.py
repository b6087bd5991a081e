"""`spq jobs`: submit and follow jobs over HTTP."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from app.client.complete import complete_jobs
from app.client.connection import JSON_OPTION, connection_options, pass_client
from app.client.ending import TIMED_OUT, labels_of, wait_for, watch_to_the_end
from app.client.http import Client
from app.client.ids import job_id_of, newest_active
from app.client.job_list import list_command
from app.client.job_parts import COMMANDS, JOB
from app.client.tables import in_bytes, job_page
from spq_core.cli.completion import complete_recipes
from spq_core.cli.reading import reading_options

DEFAULT_RECIPE = "balanced"
EXITS = """
    \b
    exit codes: 0 succeeded, 1 the job failed, 2 a wrong command, 3 canceled, 4 no valid key,
    5 the service refused, 6 it does not answer, 130 interrupted (the job goes on)
"""


@click.group(
    "jobs",
    epilog="A job is named by its id, four or more letters of it that no other has, or @last.",
)
@connection_options
@click.pass_context
def jobs_group(context: click.Context, url: str, key_file: Path) -> None:
    """Submit and follow jobs over HTTP."""
    context.obj = (url, key_file)


@jobs_group.command("submit")
@click.argument("model")
@click.option(
    "--recipe",
    default=DEFAULT_RECIPE,
    show_default=True,
    shell_complete=complete_recipes,
    help="Catalog name, or a YAML/JSON file.",
)
@click.option("--revision", default="main", show_default=True)
@click.option(
    "--local",
    is_flag=True,
    help="MODEL is a folder name in the service's SPQ_MODEL_DIRS (spq serve --models).",
)
@click.option("--output", help="Hub repository to publish to.")
@click.option("--public", is_flag=True, help="Publish openly; private by default.")
@click.option(
    "--dataset",
    "datasets",
    multiple=True,
    default=("wikitext2",),
    show_default=True,
    help="Evaluation text; may be repeated.",
)
@click.option(
    "--limit", type=click.IntRange(1), help="Evaluation windows; the whole corpus by default."
)
@click.option(
    "--length", type=int, help="Tokens per window; 1024, or the model's context if shorter."
)
@reading_options
@click.option("--tasks", help="Tasks by name, separated by commas.")
@click.option("--task-limit", type=click.IntRange(1), help="Questions of each task.")
@click.option(
    "--throughput/--no-throughput",
    default=True,
    help="Time prefill and decoding; with few windows that takes longer than the rest.",
)
@click.option("--trials", type=click.IntRange(1, 50), help="Timed runs of each model.")
@click.option(
    "--int8-baseline/--no-int8-baseline", default=True, help="Measure plain INT8 beside the result."
)
@click.option("--label", "labels", multiple=True, help="name=value; may be repeated.")
@click.option("--max-minutes", type=click.IntRange(1), help="A job that takes longer fails.")
@click.option("--webhook", help="https:// address that is told how it ends.")
@click.option("--idempotency-key", help="The same request with the same key makes no second job.")
@click.option(
    "--dry-run", is_flag=True, help="Only tell what the job would be, take, and wait for."
)
@click.option("--watch", is_flag=True, help="Follow the job to its end.")
@JSON_OPTION
@pass_client
def submit_command(
    client: Client,
    model: str,
    dry_run: bool,
    watch: bool,
    as_json: bool,
    idempotency_key: str | None,
    **asked: Any,
) -> None:
    """Submit a job for MODEL.

    \b
    spq jobs submit HuggingFaceTB/SmolLM2-135M-Instruct --recipe balanced --limit 32 --watch
    spq jobs submit my-model --local --recipe ./mine.yaml --no-throughput --label run=7
    spq jobs submit org/model --dry-run
    """
    if not asked["local"] and "/" not in model:
        click.echo(
            f"treating {model} as a Hub model; use --local for a folder in SPQ_MODEL_DIRS", err=True
        )
    body = _submission(model, asked)
    if dry_run:
        plan = client.call("POST", "/jobs", body, dry_run=True)
        click.echo(json.dumps(plan, indent=1) if as_json else _plan(plan))
        return
    headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
    _made(client, client.call("POST", "/jobs", body, headers), watch=watch, as_json=as_json)


def _submission(model: str, asked: dict[str, Any]) -> dict[str, Any]:
    from spq_core.recipe.catalog import read_request  # noqa: PLC0415 - reading recipes takes long to import

    evaluation = {
        "perplexity": list(asked["datasets"]), "limit": asked["limit"], "length": asked["length"],
        "throughput": asked["throughput"], "int8_baseline": asked["int8_baseline"], "task_limit": asked["task_limit"],
        **({"tasks": asked["tasks"].split(",")} if asked["tasks"] else {}),
        **({"trials": asked["trials"]} if asked["trials"] else {}),
    }  # fmt: skip
    body: dict[str, Any] = {
        "model": (
            {"path": model} if asked["local"] else {"repo_id": model, "revision": asked["revision"]}
        )
        | asked["reading"].request(),
        "recipe": read_request(asked["recipe"]),
        "evaluation": evaluation,
        "labels": labels_of(asked["labels"]),
    }
    if asked["output"]:
        body["output"] = {"repo_id": asked["output"], "private": not asked["public"]}
    if asked["max_minutes"]:
        body["limits"] = {"max_runtime_seconds": 60 * asked["max_minutes"]}
    if asked["webhook"]:
        body["webhook"] = {"url": asked["webhook"]}
    return body


def _plan(plan: dict[str, Any]) -> str:
    lines = [f"{plan['model']} · {plan['recipe']['metadata']['name']}"]
    found = plan["estimate"]
    if found is None:
        lines.append("no estimate: the headers of the model could not be had now")
    else:
        size, seconds = found["artifact_bytes"]["expected"], found["seconds"]
        lines.append(f"about {in_bytes(size)} ({size / found['source_bytes']:.1%} of the source)")
        lines.append(
            f"about {seconds['expected'] / 60:,.1f} minutes on two cores ({seconds['low'] / 60:,.1f} to {seconds['high'] / 60:,.1f})"
        )
    queue = plan["queue"]
    lines.append(
        f"{queue['position'] - 1} jobs ahead, {queue['running']} running, {queue['workers']} workers"
    )
    return "\n".join([*lines, *(f"○ {stage['title']}" for stage in plan["stages"])])


def _made(client: Client, job: dict[str, Any], *, watch: bool, as_json: bool) -> None:
    """Show a job that was accepted, or follow it."""
    if watch:
        click.echo(job["id"], err=True)
        watch_to_the_end(client, job["id"], as_json=as_json)
    click.echo(json.dumps(job) if as_json else job["id"])


@jobs_group.command("show")
@JOB
@JSON_OPTION
@click.option("--web", is_flag=True, help="Open its page in a browser.")
@pass_client
def show_command(client: Client, job_id: str, as_json: bool, web: bool) -> None:
    """Show a job: how it stands, its figures, gates and stages."""
    job = client.call("GET", f"/jobs/{job_id_of(client, job_id)}")
    if web:
        click.launch(f"{client.url.rstrip('/')}/ui/jobs/{job['id']}")
        return
    click.echo(json.dumps(job, indent=1) if as_json else job_page(job))


@jobs_group.command("watch", epilog=EXITS)
@click.argument("job_id", required=False, shell_complete=complete_jobs)
@JSON_OPTION
@pass_client
def watch_command(client: Client, job_id: str | None, as_json: bool) -> None:
    """Follow a job to its end; without an id, the newest that has not ended."""
    found = newest_active(client) if job_id is None else job_id_of(client, job_id)
    watch_to_the_end(client, found, as_json=as_json)


@jobs_group.command("cancel")
@JOB
@pass_client
def cancel_command(client: Client, job_id: str) -> None:
    """Ask a job to stop."""
    click.echo(client.call("POST", f"/jobs/{job_id_of(client, job_id)}/cancel")["status"])


@jobs_group.command("delete")
@JOB
@pass_client
def delete_command(client: Client, job_id: str) -> None:
    """Forget a job that has ended, its figures and its artifact."""
    client.call("DELETE", f"/jobs/{job_id_of(client, job_id)}")


@jobs_group.command("label")
@JOB
@click.argument("labels", nargs=-1, required=True)
@pass_client
def label_command(client: Client, job_id: str, labels: Sequence[str]) -> None:
    """Set labels (name=value) of a job, and remove some (name=).

    \b
    spq jobs label @last team=search run=
    """
    changes = {name: value or None for name, value in labels_of(labels).items()}
    job = client.call("PATCH", f"/jobs/{job_id_of(client, job_id)}", {"labels": changes})
    click.echo(", ".join(f"{name}={value}" for name, value in job["labels"].items()))


@jobs_group.command("retry")
@JOB
@click.option("--watch", is_flag=True, help="Follow the new job to its end.")
@JSON_OPTION
@pass_client
def retry_command(client: Client, job_id: str, watch: bool, as_json: bool) -> None:
    """Submit a failed or canceled job again, as a new one."""
    job = client.call("POST", f"/jobs/{job_id_of(client, job_id)}/retry")
    _made(client, job, watch=watch, as_json=as_json)


@jobs_group.command("measure")
@JOB
@click.option(
    "--dataset", "datasets", multiple=True, help="Another text than the job's; may be repeated."
)
@click.option("--limit", type=click.IntRange(1), help="Windows of each.")
@click.option("--length", type=click.IntRange(16), help="Tokens per window.")
@click.option("--tasks", help="Tasks by name, separated by commas.")
@click.option("--task-limit", type=click.IntRange(1), help="Questions of each task.")
@click.option("--watch", is_flag=True, help="Follow the new job to its end.")
@JSON_OPTION
@pass_client
def measure_command(
    client: Client,
    job_id: str,
    datasets: Sequence[str],
    tasks: str | None,
    watch: bool,
    as_json: bool,
    **changes: int | None,
) -> None:
    """Measure the artifact of a job that has ended, as a new job that compresses nothing."""
    job_id = job_id_of(client, job_id)
    wanted = {
        **changes, "perplexity": list(datasets), "tasks": tasks.split(",") if tasks else None,
    }  # fmt: skip
    chosen = {name: value for name, value in wanted.items() if value}
    body: dict[str, Any] = {}
    if chosen:
        before = client.call("GET", f"/jobs/{job_id}")["request"]["evaluation"]
        body["evaluation"] = before | chosen
    _made(
        client, client.call("POST", f"/jobs/{job_id}/measure", body), watch=watch, as_json=as_json
    )


@jobs_group.command("wait", epilog=EXITS)
@click.argument("job_ids", nargs=-1, shell_complete=complete_jobs)
@click.option(
    "--label",
    "labels",
    multiple=True,
    help="Wait for all jobs with name=value that have not ended.",
)
@click.option(
    "--timeout", type=click.IntRange(1), help=f"Seconds; then the exit code is {TIMED_OUT}."
)
@pass_client
def wait_command(
    client: Client, job_ids: Sequence[str], labels: Sequence[str], timeout: int | None
) -> None:
    """Wait for jobs without a word; the exit code is the worst of theirs.

    \b
    spq jobs wait @last && echo done
    spq jobs list -q --label run=7 | xargs spq jobs wait --timeout 3600
    """
    wait_for(client, job_ids, labels, timeout)


for _command in (list_command, *COMMANDS):
    jobs_group.add_command(_command)

"""`spq sweeps`: many recipes on one model, through the service."""

import functools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from app.client.complete import complete_sweeps
from app.client.connection import JSON_OPTION, connection_options, pass_client
from app.client.download import download_artifact
from app.client.http import ApiError, Client
from app.client.ids import sweep_id_of
from spq_core.cli.completion import complete_shipped_sweeps
from spq_core.cli.reading import reading_options
from spq_core.evaluation.certainty import shown
from spq_core.evaluation.drawing import require_drawable
from spq_core.models.reading import Reading
from spq_core.sweep.document import read_document
from spq_core.sweep.figure import draw_sweep
from spq_core.sweep.tables import STOPPED, member_name, sweep_table

ENDED = frozenset({"finished", "failed", "canceled"})
FAILED, CANCELED, NONE_FEASIBLE, INTERRUPTED = 1, 3, 7, 130
POLL_SECONDS = 3.0


@click.group("sweeps")
@connection_options
@click.pass_context
def sweeps_group(context: click.Context, url: str, key_file: Path) -> None:
    """Compare many recipes on one model, through the service (`spq sweep` does it without one)."""
    context.obj = (url, key_file)


@sweeps_group.command("submit")
@click.argument("model")
@click.argument("sweep", shell_complete=complete_shipped_sweeps)
@click.option("--revision", default="main", show_default=True)
@click.option(
    "--local",
    is_flag=True,
    help="MODEL is a folder name in the service's SPQ_MODEL_DIRS (spq serve --models).",
)
@reading_options
@click.option("--dataset", help="Text to calibrate and evaluate on in place of the recipes' own.")
@click.option(
    "--windows", default=32, show_default=True, type=click.IntRange(1), help="Number of windows."
)
@click.option(
    "--length", type=int, help="Tokens per window; 1024, or the model's context if shorter."
)
@click.option("--tasks", help="Tasks by name, separated by commas.")
@click.option("--task-limit", type=click.IntRange(1), help="Questions of each task.")
@click.option(
    "--max-parallel",
    default=4,
    show_default=True,
    type=click.IntRange(1),
    help="Members at a time.",
)
@click.option("--publish", help="Hub repository for the best member, private.")
@click.option("--public", is_flag=True, help="Make that repository public.")
@click.option("--dry-run", is_flag=True, help="Only tell the members, and what each would take.")
@click.option("--watch", is_flag=True, help="Follow the sweep to its end.")
@JSON_OPTION
@pass_client
def submit_command(
    client: Client,
    model: str,
    sweep: str,
    revision: str,
    local: bool,
    reading: Reading,
    dataset: str | None,
    windows: int,
    length: int | None,
    tasks: str | None,
    task_limit: int | None,
    max_parallel: int,
    publish: str | None,
    public: bool,
    dry_run: bool,
    watch: bool,
    as_json: bool,
) -> None:
    """Try every member of SWEEP (a shipped one by name, or a YAML file) on MODEL.

    \b
    spq sweeps submit HuggingFaceTB/SmolLM2-135M-Instruct baselines --watch
    spq sweeps submit my-model ./sizes.yaml --local --windows 16 --dry-run
    """
    body = {
        "model": ({"path": model} if local else {"repo_id": model, "revision": revision})
        | reading.request(),
        "sweep": _document(sweep),
        "evaluation": {
            "perplexity": [dataset or "wikitext2"], "limit": windows, "length": length,
            "tasks": [] if tasks is None else tasks.split(","), "task_limit": task_limit,
        },
        "dataset": dataset,
        "max_parallel": max_parallel,
        "publish": None if publish is None else {"repo_id": publish, "private": not public},
    }  # fmt: skip
    if dry_run:
        plan = client.call("POST", "/sweeps", body, dry_run=True)
        click.echo(json.dumps(plan, indent=1) if as_json else _plan_table(plan))
        return
    found = client.call("POST", "/sweeps", body)
    if watch:
        click.echo(found["id"], err=True)
        _watch(client, found["id"], as_json=as_json)
    click.echo(json.dumps(found) if as_json else found["id"])


@sweeps_group.command("list")
@click.option("--limit", default=20, show_default=True)
@JSON_OPTION
@pass_client
def list_command(client: Client, limit: int, as_json: bool) -> None:
    """List sweeps, newest first."""
    page = client.call("GET", "/sweeps", limit=limit)
    if as_json:
        click.echo(json.dumps(page))
        return
    if not page["data"]:
        click.echo("no sweeps", err=True)
    for one in page["data"]:
        counts = ", ".join(f"{count} {status}" for status, count in one["counts"].items())
        click.echo(f"{one['id']}  {one['status']:10} {one['name']:16} {one['model']}  ({counts})")


def of_sweep(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the client, and the sweep that is named by its id, a part of it, or `@last`."""

    @click.argument("sweep_id", metavar="SWEEP", shell_complete=complete_sweeps)
    @pass_client
    @functools.wraps(command)
    def found(client: Client, sweep_id: str, **options: Any) -> None:
        command(client, sweep_id_of(client, sweep_id), **options)

    return found


@sweeps_group.command("show")
@of_sweep
@JSON_OPTION
def show_command(client: Client, sweep_id: str, as_json: bool) -> None:
    """Show a sweep's members, its front and its best, as far as they are known."""
    found = client.call("GET", f"/sweeps/{sweep_id}")
    click.echo(
        json.dumps(found, indent=1) if as_json else f"{_heading(found)}\n\n{sweep_table(found)}"
    )


@sweeps_group.command("watch")
@of_sweep
@JSON_OPTION
def watch_command(client: Client, sweep_id: str, as_json: bool) -> None:
    """Follow a sweep; exit code 0: there is a best member, 7: none keeps the limits, 1: all failed, 3: canceled."""
    try:
        _watch(client, sweep_id, as_json=as_json)
    except KeyboardInterrupt:
        click.echo(f"the sweep goes on; spq sweeps watch {sweep_id} follows it again", err=True)
        sys.exit(INTERRUPTED)


@sweeps_group.command("csv")
@of_sweep
def csv_command(client: Client, sweep_id: str) -> None:
    """Print a line a member, with every figure."""
    click.echo(client.text(f"/sweeps/{sweep_id}/members.csv"), nl=False)


def _action(name: str, words: str) -> None:
    @sweeps_group.command(name, help=words)
    @of_sweep
    def command(client: Client, sweep_id: str) -> None:
        click.echo(client.call("POST", f"/sweeps/{sweep_id}/{name}")["status"])


_action("cancel", "Stop members that run, and make no more.")
_action("pause", "Make no more members until it is resumed.")
_action("resume", "Go on with a paused sweep.")
_action("retry", "Try members again that failed or were stopped.")


@sweeps_group.command("change")
@of_sweep
@click.option("--max-parallel", type=click.IntRange(1), help="Members at a time, from now on.")
@click.option(
    "--add", "recipes", multiple=True, help="A recipe to add as a member, by name; may be repeated."
)
@click.option("--grid", help="A YAML file with a list of grids whose members are added.")
def change_command(
    client: Client,
    sweep_id: str,
    max_parallel: int | None,
    recipes: tuple[str, ...],
    grid: str | None,
) -> None:
    """Change how a sweep goes on; members can be added to one that has ended, too.

    \b
    spq sweeps change ID --max-parallel 2
    spq sweeps change ID --add gptq-4 --add small
    """
    body: dict[str, Any] = {}
    if max_parallel is not None:
        body["max_parallel"] = max_parallel
    if recipes:
        body["recipes"] = recipes
    if grid is not None:
        body["grid"] = _document(grid)
    if not body:
        raise click.UsageError("give --max-parallel, --add or --grid")
    changed = client.call("PATCH", f"/sweeps/{sweep_id}", body)
    click.echo(_heading(changed))


@sweeps_group.command("figure")
@of_sweep
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="A .svg, .png or .pdf file."
)
def figure_command(client: Client, sweep_id: str, out: Path) -> None:
    """Draw a sweep's members by the figures of its front, those on the front filled."""
    require_drawable(out)
    draw_sweep(client.call("GET", f"/sweeps/{sweep_id}"), out)
    click.echo(out)


@sweeps_group.command("download")
@of_sweep
@click.option("--member", type=click.IntRange(1), help="Its number; by default the best.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="A new folder; by default one named after the job.",
)
def download_command(client: Client, sweep_id: str, member: int | None, out: Path | None) -> None:
    """Fetch the artifact of the best member, or of another, and compare every file with its digest."""
    sweep = client.call("GET", f"/sweeps/{sweep_id}")
    number = member or sweep["best"]
    if number is None:
        raise ApiError(
            "no_best_member", f"no member of {sweep_id} keeps the limits; name one with --member"
        )
    chosen = next((one for one in sweep["members"] if one["number"] == number), None)
    if chosen is None or chosen["job_id"] is None:
        raise ApiError("no_such_member", f"{sweep_id} has no member {number} that was made")
    click.echo(download_artifact(client, chosen["job_id"], out))


@sweeps_group.command("delete")
@of_sweep
def delete_command(client: Client, sweep_id: str) -> None:
    """Forget a sweep that has ended; its members' jobs stay."""
    client.call("DELETE", f"/sweeps/{sweep_id}")


def _document(name: str) -> Any:
    """A shipped sweep's name as it is; a file's content."""
    found = read_document(name)
    return name if found is None else found


def _plan_table(plan: dict[str, Any]) -> str:
    lines = []
    for one in plan["members"]:
        words = ""
        if one["estimate"]:
            size, seconds = (
                one["estimate"][name]["expected"] for name in ("artifact_bytes", "seconds")
            )
            words = f"  {size / 1e6:,.0f} MB, {seconds / 60:,.1f} minutes"
        if one["stopped"]:
            words += f": skipped, {(one['error'] or {}).get('message') or STOPPED[one['stopped']]}"
        lines.append(f"{one['number']:>3}  {member_name(one['fields'])}{words}")
    if plan["seconds"] is not None:
        lines.append(
            f"together about {plan['seconds'] / 60:,.0f} minutes on two cores, less what members share"
        )
    else:
        lines.append("no estimates: the headers of the model could not be had now")
    return "\n".join(lines)


def _watch(client: Client, sweep_id: str, *, as_json: bool) -> None:
    """Tell each change of a member until the sweep has ended, then end with its exit code."""
    seen = 0
    found: dict[str, Any] = {"status": "running"}
    while found["status"] not in ENDED:
        page = client.patient("GET", f"/sweeps/{sweep_id}/events", after=seen, limit=1000)
        for event in page["data"]:
            _tell(client, sweep_id, event["type"], event["data"])
        seen = page["next_after"]
        last = page["data"][-1]["data"] if page["data"] else {}
        if last.get("status") in ENDED and not page["has_more"]:
            found = client.patient("GET", f"/sweeps/{sweep_id}")
        elif not page["has_more"]:
            time.sleep(POLL_SECONDS)
    click.echo(json.dumps(found) if as_json else sweep_table(found))
    if found["status"] == "canceled":
        sys.exit(CANCELED)
    if found["status"] == "failed":
        sys.exit(FAILED)
    sys.exit(NONE_FEASIBLE if found["best"] is None else 0)


def _heading(sweep: dict[str, Any]) -> str:
    counts = ", ".join(f"{count} {status}" for status, count in sweep["counts"].items())
    words = f"{sweep['id']} {sweep['name']} on {sweep['model']}: {sweep['status']} ({counts})"
    more = {"waits for": sweep["waits_for"], "done at about": sweep["estimated_finish_at"]}
    return words + "".join(f"; {name} {value}" for name, value in more.items() if value)


def _tell(client: Client, sweep_id: str, kind: str, data: dict[str, Any]) -> None:
    """On stderr; of a member that has figures, those that people wait for."""
    if kind != "member":
        about = f"{data['number']}: measured once more: " if kind == "final" else ""
        click.echo(f"{about}{data['status']}", err=True)
        return
    words = data["status"]
    if data["status"] == "succeeded":
        members = client.patient("GET", f"/sweeps/{sweep_id}")["members"]
        row = members[data["number"] - 1]["row"] or {}
        if row:
            words += f": {row['bytes_ratio']:.1%} of the source, KL {shown(row['kl'], '.4f')}"
    elif data.get("error"):
        words += f": {data['error']['message']}"
    elif data.get("stopped"):
        words += f": {STOPPED[data['stopped']]}"
    click.echo(f"{data['number']}: {words}", err=True)

"""`spq jobs list`: rows by what jobs are, newest first or by their figures."""

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import click

from app.client.connection import JSON_OPTION, pass_client
from app.client.ending import EXIT_CODES, labels_of
from app.client.http import Client
from app.client.tables import jobs_table
from spq_core.cli.completion import complete_recipes

STATUSES = ("queued", "running", "canceling", *EXIT_CODES)


@click.command("list")
@click.option(
    "--status", "statuses", multiple=True, type=click.Choice(STATUSES), help="May be repeated."
)
@click.option("--model")
@click.option("--recipe", shell_complete=complete_recipes)
@click.option("--label", "labels", multiple=True, help="name=value; may be repeated.")
@click.option("--sweep", help="Only members of this sweep.")
@click.option("--since", help="Only jobs submitted after this (2030-01-31, or 2030-01-31T12:00Z).")
@click.option("-s", "--search", help="Part of the id, model, recipe or labels.")
@click.option(
    "--sort",
    default="-created_at",
    show_default=True,
    help="created_at, finished_at, model, kl, bytes_ratio, perplexity_ratio; - turns it round.",
)
@click.option("--limit", default=20, show_default=True, type=click.IntRange(1, 100))
@click.option("--all", "everything", is_flag=True, help="All pages.")
@click.option("-q", "--quiet", is_flag=True, help="Only ids, to pipe.")
@JSON_OPTION
@pass_client
def list_command(
    client: Client,
    statuses: Sequence[str],
    labels: Sequence[str],
    since: str | None,
    search: str | None,
    everything: bool,
    quiet: bool,
    as_json: bool,
    **chosen: Any,
) -> None:
    """List jobs, newest first.

    \b
    spq jobs list --status failed --label team=search
    spq jobs list -q --status queued | xargs -n1 spq jobs cancel
    """
    query = {
        **chosen, "status": ",".join(statuses) or None, "q": search, "created_after": _moment(since), "view": "row",
        **{f"label.{name}": value for name, value in labels_of(labels).items()},
    }  # fmt: skip
    page = client.call("GET", "/jobs", **query)
    rows = page["data"]
    while everything and page["has_more"]:
        page = client.call("GET", "/jobs", **query, after=page["next_cursor"])
        rows += page["data"]
    if as_json:
        click.echo(json.dumps({**page, "data": rows}))
    elif quiet:
        click.echo("".join(f"{row['id']}\n" for row in rows), nl=False)
    elif rows:
        click.echo(jobs_table(rows))
    else:
        click.echo("no jobs", err=True)


def _moment(since: str | None) -> str | None:
    """A moment as the API has it: without a time zone it is meant here.

    Raises:
        click.BadParameter: it is none.
    """
    if since is None:
        return None
    try:
        return datetime.fromisoformat(since).astimezone().isoformat()
    except (ValueError, OverflowError):
        raise click.BadParameter(
            f"{since!r} is no moment; write 2030-01-31 or 2030-01-31T12:00", param_hint="--since"
        ) from None

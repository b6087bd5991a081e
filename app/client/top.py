"""Commands about the service itself: who one is there, its workers, models and texts; and waiting."""

import json
from collections.abc import Sequence
from pathlib import Path

import click

from app.client.complete import complete_jobs
from app.client.connection import JSON_OPTION, KEY_FILE, client_of, connection_options
from app.client.ending import wait_for
from app.client.http import Client
from app.client.tables import duration, in_bytes, since, table


@click.command("whoami")
@connection_options
@JSON_OPTION
def whoami_command(url: str, key_file: Path, as_json: bool) -> None:
    """Tell whom your API key speaks for, what it may, and what is left of your limits."""
    client = client_of(url, key_file)
    me = client.call("GET", "/me")
    if as_json:
        click.echo(json.dumps(me))
        return
    until = f", until {me['key']['expires_at']}" if me["key"]["expires_at"] else ""
    click.echo(
        f"{me['tenant']} at {client.url}, key {me['key']['name']} ({', '.join(me['scopes'])}{until})"
    )
    rows = [
        (name, f"{one['used']:g}", "unlimited" if one["limit"] is None else str(one["limit"]))
        for name, one in me["limits"].items()
    ]
    click.echo(table(("limit", "used", "of"), rows))


@click.command("workers")
@connection_options
@JSON_OPTION
def workers_command(url: str, key_file: Path, as_json: bool) -> None:
    """List the workers that are there, and what each does."""
    client = client_of(url, key_file)
    found = client.call("GET", "/workers")
    if as_json:
        click.echo(json.dumps(found))
        return
    rows = [
        (one["id"], one["state"], f"{one['job']['model']}: {one['job']['stage']}" if one["job"] and one["job"]["id"] else "–",
         str(one["facts"].get("device", "?")), str(one["facts"].get("threads", "?")), f"{duration(since(one['seen_at']))} ago")
        for one in found["data"]
    ]  # fmt: skip
    click.echo(
        table(("worker", "state", "job", "device", "threads", "seen"), rows)
        or "no worker is there; spq worker starts one"
    )
    click.echo(f"{found['queued']} jobs wait")


@click.command("models")
@connection_options
@JSON_OPTION
def models_command(url: str, key_file: Path, as_json: bool) -> None:
    """List models in the service's own folders (spq jobs submit NAME --local)."""
    client = client_of(url, key_file)
    found = client.call("GET", "/models")["data"]
    rows = [(one["name"], one["model_type"] or "?", in_bytes(one["bytes"])) for one in found]
    words = (
        table(("model", "type", "weights"), rows)
        or "no local models; spq serve --models names a folder"
    )
    click.echo(json.dumps(found) if as_json else words)


@click.command("datasets")
@connection_options
@JSON_OPTION
def datasets_command(url: str, key_file: Path, as_json: bool) -> None:
    """List the texts that jobs can be measured and calibrated on."""
    client = client_of(url, key_file)
    found = client.call("GET", "/capabilities")["datasets"]
    click.echo(json.dumps(found) if as_json else "\n".join(found))


@click.command("wait")
@connection_options
@click.argument("job_ids", nargs=-1, shell_complete=complete_jobs)
@click.option(
    "--label",
    "labels",
    multiple=True,
    help="Wait for all jobs with name=value, ended ones too.",
)
@click.option("--timeout", type=click.IntRange(1), help="Seconds; then the exit code is 124.")
def wait_command(
    url: str, key_file: Path, job_ids: Sequence[str], labels: Sequence[str], timeout: int | None
) -> None:
    """Wait for jobs without a word; as spq jobs wait."""
    wait_for(client_of(url, key_file), job_ids, labels, timeout)


@click.command("login")
@click.option(
    "--url", envvar="SPQ_URL", show_envvar=True, default="http://127.0.0.1:8000", show_default=True
)
@click.option("--key-file", default=KEY_FILE, show_default=True, type=click.Path(path_type=Path))
def login_command(url: str, key_file: Path) -> None:
    """Ask for an API key, try it, and keep it in a file that only you can read."""
    key = click.prompt("API key", hide_input=True).strip()
    me = Client(url, key).call("GET", "/me")
    path = key_file.expanduser()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.touch(mode=0o600)
    path.chmod(0o600)
    path.write_text(f"{key}\n", encoding="ascii")
    click.echo(f"signed in at {url} as {me['tenant']}; the key is in {path}")


SHELLS = ("bash", "zsh", "fish")


@click.command("completion")
@click.argument("shell", type=click.Choice(SHELLS))
def completion_command(shell: str) -> None:
    """Print what makes a shell complete commands, recipes and jobs.

    \b
    eval "$(spq completion bash)"                                     # in ~/.bashrc
    eval "$(spq completion zsh)"                                      # in ~/.zshrc
    spq completion fish > ~/.config/fish/completions/spq.fish
    """
    from click.shell_completion import get_completion_class  # noqa: PLC0415

    found = get_completion_class(shell)
    if found is not None:
        root = click.get_current_context().find_root().command
        click.echo(found(root, {}, "spq", "_SPQ_COMPLETE").source())

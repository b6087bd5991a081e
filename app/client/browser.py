"""`spq open`: the dashboard, signed in."""

import webbrowser
from pathlib import Path

import click

from app.client.connection import client_of, connection_options


@click.command("open")
@connection_options
@click.option(
    "--print",
    "only_prints",
    is_flag=True,
    help="Only print the link; it works once, for ten minutes.",
)
def open_command(url: str, key_file: Path, only_prints: bool) -> None:
    """Open the dashboard in a browser, signed in for whom your API key speaks."""
    client = client_of(url, key_file)
    link = client.call("POST", "/session/codes", {})
    address = f"{client.url.rstrip('/')}{link['path']}"
    if only_prints or not webbrowser.open(address):
        click.echo(address)

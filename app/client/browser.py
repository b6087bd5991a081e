"""`spq open`: the dashboard, signed in."""

import webbrowser

import click

from app.client.connection import connection_options, pass_client
from app.client.http import Client


@click.command("open")
@connection_options
@click.option(
    "--print",
    "only_prints",
    is_flag=True,
    help="Only print the link; it works once, for ten minutes.",
)
@click.pass_context
def open_command(context: click.Context, url: str, key_file: str, only_prints: bool) -> None:
    """Open the dashboard in a browser, signed in for whom your API key speaks."""
    context.obj = (url, key_file)
    context.invoke(_open, only_prints=only_prints)


@click.command()
@pass_client
def _open(client: Client, only_prints: bool) -> None:
    link = client.call("POST", "/session/codes", {})
    address = f"{client.url.rstrip('/')}{link['path']}"
    if only_prints or not webbrowser.open(address):
        click.echo(address)

"""How commands reach the service: its address and an API key."""

import os
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

from app.client.http import ApiError, Client

KEY_FILE = Path("~/.spq/api-key")
JSON_OPTION = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")


def connection_options(group: Callable[..., None]) -> Callable[..., None]:
    """Options of a group of commands; see `pass_client`."""
    url = click.option(
        "--url", envvar="SPQ_URL", default="http://127.0.0.1:8000", show_default=True
    )
    key_file = click.option(
        "--key-file",
        envvar="SPQ_KEY_FILE",
        default=KEY_FILE,
        show_default=True,
        type=click.Path(path_type=Path),
        help="File with the API key; SPQ_API_KEY comes first.",
    )
    return url(key_file(group))


def pass_client(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command its client; only now is a key needed, so that --help works without one."""

    @click.pass_obj
    @wraps(command)
    def with_client(where: tuple[str, Path], /, **options: Any) -> None:
        command(_client(*where), **options)

    return with_client


def _client(url: str, key_file: Path) -> Client:
    key = os.environ.get("SPQ_API_KEY", "")
    path = key_file.expanduser()
    if not key and path.is_file():
        key = path.read_text(encoding="ascii").strip()
    if not key:
        raise ApiError(
            "unauthenticated",
            f"no API key: set SPQ_API_KEY, or name a file with --key-file ({path} does not exist)",
        )
    return Client(url, key)

"""How commands reach the service: its address and an API key."""

import os
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

from app.client.http import ApiError, Client

URL = "http://127.0.0.1:8000"
KEY_FILE = Path("~/.spq/api-key")
JSON_OPTION = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")


def connection_options(group: Callable[..., None]) -> Callable[..., None]:
    """Options of a group of commands; see `pass_client`."""
    url = click.option(
        "--url",
        envvar="SPQ_URL",
        show_envvar=True,
        default=URL,
        show_default=True,
        help="Address of the service.",
    )
    key_file = click.option(
        "--key-file",
        envvar="SPQ_KEY_FILE",
        show_envvar=True,
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
        command(client_of(*where), **options)

    return with_client


def client_of(url: str = URL, key_file: Path = KEY_FILE) -> Client:
    """A client with the key that is meant.

    Raises:
        ApiError: the address is none, or there is no key.
    """
    if not url.startswith(("http://", "https://")):
        raise ApiError(
            "invalid_url",
            f"{url!r} is no address; it begins with http:// or https:// (--url, SPQ_URL)",
        )
    key, path = os.environ.get("SPQ_API_KEY", ""), key_file.expanduser()
    source = "SPQ_API_KEY"
    if not key and path.is_file():
        key, source = path.read_text(encoding="ascii").strip(), str(path)
    if not key:
        raise ApiError(
            "unauthenticated",
            f"no API key: set SPQ_API_KEY, or name a file with --key-file ({path} does not exist; spq login makes it)",
        )
    return Client(url, key, source)

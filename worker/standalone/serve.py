"""`spq serve`: API, dashboard, broker and worker on one machine, on SQLite."""

import fcntl
import os
import signal
import socket
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TextIO

import click
from cryptography.fernet import Fernet

from app.cli import run_api
from app.db.browser_sessions import make_code
from app.db.keys import SCOPES, create_key, find_principal
from app.db.migrate import upgrade
from app.db.session import connect
from app.main import create_app
from app.settings import ApiSettings
from app.telemetry import configure_logging
from spq_core.errors import SpqError
from worker.command import celery_arguments
from worker.standalone.broker import WorkerProcess, embedded_broker
from worker.threads import PASSIVE_THREADS

LOOPBACK = ("127.0.0.1", "::1", "localhost")
KEY_FILE = "api-key"
SEALING_FILE = "secret-keys"


class HomeInUseError(SpqError):
    """Another service uses the folder."""

    code = "home_in_use"


class PortInUseError(SpqError):
    """Something else listens at the address."""

    code = "port_in_use"


@click.command("serve")
@click.option(
    "--home",
    default=Path("~/.spq"),
    show_default=True,
    type=click.Path(path_type=Path),
    help="Database, artifacts, key.",
)
@click.option("--host", default="127.0.0.1", show_default=True, type=click.Choice(LOOPBACK))
@click.option("--port", default=8000, show_default=True, type=click.IntRange(1, 65535))
@click.option(
    "--models",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder whose subfolders jobs may name as model.path.",
)
@click.option(
    "--data-dir",
    envvar="SPQ_DATA_DIR",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder with evaluation texts.",
)
def serve_command(
    home: Path, host: str, port: int, models: Path | None, data_dir: Path | None
) -> None:
    """Run everything on this machine, reachable from this machine only."""
    configure_logging()
    os.umask(0o077)  # what this service writes is its owner's alone
    home = home.expanduser().resolve()
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    # uvicorn raises the signal again when it has shut down: that must unwind, not kill, so that
    # broker and worker end too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    lock = _lock(home)
    environment = _environment(home, models, data_dir)
    upgrade(environment["SPQ_DATABASE_URL"])
    key_file = _own_key(home, environment["SPQ_DATABASE_URL"])
    _require_free(host, port)
    given = os.environ.get("SPQ_BROKER_URL")
    with nullcontext(given) if given else embedded_broker(home / "broker") as broker_url:
        os.environ.update(environment | {"SPQ_BROKER_URL": broker_url})
        arguments = celery_arguments("serve@localhost")
        with WorkerProcess(arguments, dict(os.environ)).running():
            app = create_app(ApiSettings())
            address = f"http://{_bracketed(host)}:{port}"
            click.echo(f"spq listens on {address}  (API key in {key_file})", err=True)
            code = _login_code(environment["SPQ_DATABASE_URL"], key_file)
            click.echo(f"Open {address}/ui/#code={code}", err=True)
            run_api(app, host, port)
    lock.close()


def _require_free(host: str, port: int) -> None:
    """Find out that a port is taken before anything is started.

    Raises:
        PortInUseError: it is.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as place:
        place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            place.bind((host, port))
        except OSError as error:
            raise PortInUseError(
                f"port {port} of {host} cannot be used ({error.strerror}); end what listens there, "
                "or name another --port"
            ) from None


def _lock(home: Path) -> TextIO:
    """Make sure that no other service uses this folder; held until the process ends.

    Raises:
        HomeInUseError: another one does.
    """
    handle = (home / "lock").open("w", encoding="ascii")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        handle.close()
        raise HomeInUseError(
            f"another spq serve uses {home}; end it, or name another --home"
        ) from None
    return handle


def _environment(home: Path, models: Path | None, data_dir: Path | None) -> dict[str, str]:
    """Settings of the embedded mode; what the user set for other things stays."""
    folders = [str(path.resolve()) for path in (models,) if path is not None]
    own = {
        "SPQ_DATABASE_URL": f"sqlite:///{home / 'spq.db'}",
        "SPQ_ARTIFACT_DIR": str(home / "artifacts"),
        "SPQ_SCRATCH_DIR": str(home / "scratch"),
        "SPQ_SECRET_KEYS": _own_file(home / SEALING_FILE, Fernet.generate_key().decode("ascii")),
        "SPQ_SPIN": "true",  # one run at a time, on a machine of its own
        **PASSIVE_THREADS,
    }
    if folders:
        own["SPQ_MODEL_DIRS"] = os.pathsep.join(folders)
    if data_dir is not None:
        own["SPQ_DATA_DIR"] = str(data_dir.resolve())
    return own


def _login_code(url: str, key_file: Path) -> str:
    """A code that signs a browser in as the machine's owner: once, within ten minutes."""
    database = connect(url)
    try:
        with database.write() as session:
            owner = find_principal(session, key_file.read_text(encoding="ascii").strip())
            if owner is None:
                raise RuntimeError("the key that was just looked at does not live")
            return make_code(session, owner.key_id)
    finally:
        database.dispose()


def _own_key(home: Path, url: str) -> Path:
    """A key for the machine's owner, in a file only they can read."""
    path = home / KEY_FILE
    database = connect(url)
    if path.is_file():
        with database.read() as session:
            known = find_principal(session, path.read_text(encoding="ascii").strip())
        if known is not None:
            database.dispose()
            return path
    with database.write() as session:
        _, key = create_key(session, name="spq serve", tenant="default", scopes=SCOPES, days=None)
    path.unlink(missing_ok=True)
    _own_file(path, key)
    database.dispose()
    return path


def _own_file(path: Path, fresh: str) -> str:
    """The line in a file that only its owner can read; it is made with `fresh` if it is not there."""
    if not path.is_file():
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(f"{fresh}\n")
    return path.read_text(encoding="ascii").strip()


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host

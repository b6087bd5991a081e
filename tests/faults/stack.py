"""A whole deployment as processes: 2 APIs, 3 workers, Postgres, Valkey, a stand-in Hub, a webhook endpoint."""

import http.server
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import httpx2
import psutil
from cryptography.fernet import Fernet

from app.db.keys import SCOPES, create_key
from app.db.migrate import upgrade
from app.db.session import Database, connect
from tests.hub_server import WRITE_TOKEN, StubHub, stub_hub
from tests.servers import PostgresServer, ValkeyServer, free_port

LEASE_SECONDS = 6.0
DISK_BYTES = 1600 << 20
"""Of the file system that scratch folders and artifacts are on, where this user may mount one."""
SKEWED_CLOCKS = MappingProxyType({"worker1": "+7200", "worker2": "-5400", "api1": "+3600"})
"""Seconds by which the wall clocks of some processes are wrong."""
CHILDREN = ("worker.children.runner", "worker.children.fetcher", "worker.children.publisher")


class Endpoint(http.server.ThreadingHTTPServer):
    """Takes webhook messages; every third one is refused at first."""

    def __init__(self) -> None:
        self.got: list[dict] = []
        self.seen: set[str] = set()
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}/hook"


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        identity = self.headers["webhook-id"]
        refused = len(self.server.seen) % 3 == 0 and identity not in self.server.seen
        self.server.seen.add(identity)
        if not refused:
            self.server.got.append({"id": identity, **json.loads(body)})
        self.send_response(503 if refused else 200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@dataclass
class Deployment:
    root: Path
    environment: dict[str, str]
    postgres: PostgresServer
    valkey: ValkeyServer
    hub: StubHub
    endpoint: Endpoint
    database: Database
    key: str
    ports: list[int]
    workers: list[str]
    clocks: Mapping[str, str]
    processes: dict[str, subprocess.Popen] = field(default_factory=dict)

    @property
    def disk(self) -> Path:
        return self.root / "disk"

    @property
    def scratch(self) -> Path:
        return self.disk / "scratch"

    @property
    def artifacts(self) -> Path:
        return self.disk / "artifacts"

    @property
    def apis(self) -> list[str]:
        return [f"api{number}" for number in range(len(self.ports))]

    def start(self, name: str) -> None:
        number = int(name[-1])
        arguments = (
            ["api", "--port", str(self.ports[number])]
            if name.startswith("api")
            else ["worker", "--name", f"{name}-{time.monotonic_ns()}@faults"]
        )
        with (self.root / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [sys.executable, "-m", "worker.cli", *arguments],
                env=self.environment | skewed_clock(self.clocks.get(name)), stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def signal_group(self, name: str, number: int) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.processes[name].pid, number)

    def kill(self, name: str) -> None:
        self.signal_group(name, signal.SIGKILL)
        self.processes[name].wait(100)

    def children(self, *modules: str) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter(["cmdline", "environ"]):
            command = process.info["cmdline"] or []
            if any(module in command for module in modules or CHILDREN) and str(
                self.scratch
            ) in str(process.info["environ"]):
                found.append(process)
        return found

    def ask(
        self, method: str, path: str, seconds: float = 60, **options: object
    ) -> httpx2.Response:
        """A request as a careful client makes it: again at the other API until one answers."""
        deadline = time.monotonic() + seconds
        turn = 0
        headers = {"Authorization": f"Bearer {self.key}", **options.pop("headers", {})}
        while True:
            url = f"http://127.0.0.1:{self.ports[turn % len(self.ports)]}{path}"
            turn += 1
            with suppress(httpx2.TransportError):
                answer = httpx2.request(method, url, headers=headers, timeout=5, **options)
                if answer.status_code < 500 and answer.status_code != 409:
                    return answer
            assert time.monotonic() < deadline, f"no API answered {method} {path}"
            time.sleep(0.3)


def skewed_clock(offset: str | None) -> dict[str, str]:
    """Variables under which a process sees another time of day; it also runs slower."""
    found = importlib.util.find_spec("libfaketime")
    if offset is None or found is None or found.origin is None:
        return {}
    library = Path(found.origin).parent / "vendor/libfaketime/src/libfaketime.so.1"
    return {
        "LD_PRELOAD": str(library),
        "FAKETIME": offset,
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """A file system of its own for a folder, that can be filled without harm; only root may mount one."""
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "none", str(folder)]
    mounted = subprocess.run(mount, check=False, capture_output=True).returncode == 0
    try:
        yield
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def deployment(
    root: Path,
    model: Path,
    *,
    workers: int = 3,
    settings: Mapping[str, str] = MappingProxyType({}),
    clocks: Mapping[str, str] = SKEWED_CLOCKS,
) -> Iterator[Deployment]:
    """Start everything; end everything."""
    (root / "disk").mkdir()
    # Not below `root`: Postgres may run as another user, who cannot enter there.
    folder = Path(tempfile.mkdtemp(prefix="spq-pg-"))
    postgres = PostgresServer(folder)
    valkey = ValkeyServer(root / "valkey")
    endpoint = Endpoint()
    threading.Thread(target=endpoint.serve_forever, daemon=True).start()
    upgrade(f"{postgres.url}/postgres")
    database = connect(f"{postgres.url}/postgres")
    with database.write() as session:
        _, key = create_key(session, name="t", tenant="t", scopes=SCOPES, days=None)
    with stub_hub() as hub, small_disk(root / "disk"):
        for name in ("scratch", "artifacts"):
            (root / "disk" / name).mkdir()
        hub.add_model("org/tiny", model)
        environment = os.environ | {
            "SPQ_DATABASE_URL": f"{postgres.url}/postgres",
            "SPQ_BROKER_URL": valkey.url,
            "SPQ_ARTIFACT_DIR": str(root / "disk" / "artifacts"),
            "SPQ_SCRATCH_DIR": str(root / "disk" / "scratch"),
            "SPQ_HUB_ENDPOINT": hub.url,
            "SPQ_HUB_TOKEN": WRITE_TOKEN,
            "SPQ_SECRET_KEYS": Fernet.generate_key().decode(),
            "SPQ_WEBHOOK_NETWORKS": "127.0.0.0/8",
            "SPQ_LEASE_SECONDS": str(LEASE_SECONDS),
            "SPQ_HEARTBEAT_SECONDS": "0.5",
            "SPQ_SWEEP_SECONDS": "0.5",
            "SPQ_NOTIFY_AGAIN_SECONDS": "3",
            "SPQ_GRACE_SECONDS": "1",
            "SPQ_MAX_ATTEMPTS": "10",
            "SPQ_THREADS": "1",
            "OMP_WAIT_POLICY": "PASSIVE",
            "OMP_NUM_THREADS": "1",
            **settings,
        }
        made = Deployment(
            root, environment, postgres, valkey, hub, endpoint, database, key,
            ports=[free_port(), free_port()], workers=[f"worker{n}" for n in range(workers)], clocks=clocks,
        )  # fmt: skip
        try:
            for name in (*made.apis, *made.workers):
                made.start(name)
            yield made
        finally:
            for name in made.processes:
                made.signal_group(name, signal.SIGCONT)
                made.kill(name)
            for child in made.children():
                with suppress(psutil.NoSuchProcess):
                    child.kill()
            database.dispose()
            endpoint.shutdown()
            endpoint.server_close()
            valkey.process.send_signal(signal.SIGCONT)
            valkey.kill()
            postgres.signal_all(signal.SIGCONT)
            postgres.stop()
            shutil.rmtree(folder, ignore_errors=True)

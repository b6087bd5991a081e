"""The whole service as separate processes: API, Celery worker, Postgres, Valkey, a stand-in Hub."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import psutil
import pytest
from cryptography.fernet import Fernet
from sqlalchemy import select, text

from app.client.http import Client
from app.db.keys import SCOPES, create_key
from app.db.models import JobSecret
from app.db.session import Database, connect
from tests.collector import Collector, collector
from tests.hub_server import WRITE_TOKEN, StubHub, stub_hub
from tests.servers import free_port
from worker.storage.figures import FOLDER

TERMINAL = {"succeeded", "failed", "canceled"}


PATIENCE = 5
"""How many times slower than expected a machine may be: it has other things to do."""


def wait_until(check: Callable[[], object], seconds: float, what: str) -> object:
    deadline = time.monotonic() + PATIENCE * seconds
    while time.monotonic() < deadline:
        value = check()
        if value:
            return value
        time.sleep(0.1)
    raise AssertionError(f"not within {seconds} s: {what}")


@dataclass
class Stack:
    root: Path
    environment: dict[str, str]
    database: Database
    hub: StubHub
    client: Client
    traces: Collector
    processes: dict[str, subprocess.Popen] = field(default_factory=dict)

    @property
    def scratch(self) -> Path:
        return self.root / "scratch"

    def start(self, name: str, *arguments: str) -> None:
        with (self.root / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [sys.executable, "-m", "worker.cli", *arguments],
                env=self.environment, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def start_worker(self, name: str = "worker") -> None:
        self.start(name, "worker", "--name", f"{name}@test")

    def kill(self, name: str, number: int = signal.SIGKILL) -> None:
        os.killpg(self.processes[name].pid, number)
        self.processes.pop(name).wait(100)

    def runners(self, module: str = "worker.children.runner") -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter(["cmdline", "environ"]):
            command = process.info["cmdline"] or []
            if module in command and str(self.scratch) in str(process.info["environ"]):
                found.append(process)
        return found

    def submit(self, **changes: object) -> str:
        body = {
            "model": {"repo_id": "org/tiny"},
            "recipe": "int8",
            "evaluation": {
                "perplexity": ["builtin"],
                "length": 64,
                "limit": 2,
                "trials": 1,
                "new_tokens": 4,
            },
        } | changes
        return self.client.call("POST", "/jobs", body)["id"]

    def job(self, job_id: str) -> dict:
        return self.client.call("GET", f"/jobs/{job_id}")

    def finish(self, job_id: str, seconds: float = 120) -> dict:
        wait_until(
            lambda: self.job(job_id)["status"] in TERMINAL,
            seconds,
            f"end of {job_id}: {self.job(job_id)}",
        )
        return self.job(job_id)

    def everything_recorded(self) -> str:
        """All rows of all tables, and all files a job left, as one text."""
        with self.database.engine.connect() as connection:
            tables = connection.execute(
                text("SELECT table_name FROM information_schema.tables WHERE table_schema='public'")
            )
            rows = [
                str(connection.execute(text(f"SELECT * FROM {name}")).all()) for (name,) in tables
            ]
        files = [
            one.read_bytes().decode(errors="replace")
            for one in self.root.rglob("*")
            if one.is_file()
        ]
        return "\n".join(rows + files)

    def secrets_kept(self) -> list[JobSecret]:
        with self.database.read() as session:
            return list(session.scalars(select(JobSecret)))

    def nothing_left(self) -> bool:
        """Whether no attempt's folder is there any more, and no process."""
        attempts = [entry for entry in self.scratch.iterdir() if entry.name != FOLDER]
        return not attempts and not self.runners()

    def wait_for_stage(self, job_id: str, stage: str, seconds: float = 60) -> None:
        def reached() -> bool:
            job = self.job(job_id)
            assert job["status"] not in TERMINAL, job
            return (job["stage"] or "").startswith(stage)

        wait_until(reached, seconds, f"stage {stage}")


@pytest.fixture
def stack(postgres_url: str, broker_url: str, tmp_path: Path, tiny_llama: Path) -> Iterator[Stack]:
    port = free_port()
    with stub_hub() as hub, collector() as traces:
        hub.add_model("org/tiny", tiny_llama)
        environment = os.environ | {
            "SPQ_DATABASE_URL": postgres_url,
            "SPQ_BROKER_URL": broker_url,
            "SPQ_ARTIFACT_DIR": str(tmp_path / "artifacts"),
            "SPQ_SCRATCH_DIR": str(tmp_path / "scratch"),
            "SPQ_HUB_ENDPOINT": hub.url,
            "SPQ_HUB_TOKEN": WRITE_TOKEN,
            "SPQ_LEASE_SECONDS": "6",
            "SPQ_HEARTBEAT_SECONDS": "0.5",
            "SPQ_SWEEP_SECONDS": "0.5",
            "SPQ_NOTIFY_AGAIN_SECONDS": "3",
            "SPQ_GRACE_SECONDS": "1",
            "SPQ_THREADS": "1",
            "SPQ_SECRET_KEYS": Fernet.generate_key().decode(),
            "OTEL_EXPORTER_OTLP_ENDPOINT": traces.url,
            "OTEL_BSP_SCHEDULE_DELAY": "500",
            "OMP_WAIT_POLICY": "PASSIVE",
        }
        database = connect(postgres_url)
        with database.write() as session:
            _, key = create_key(session, name="t", tenant="t", scopes=SCOPES, days=None)
        url = f"http://127.0.0.1:{port}"
        stack = Stack(tmp_path, environment, database, hub, Client(url, key), traces)
        stack.start("api", "api", "--port", str(port))
        stack.start_worker()
        try:
            wait_until(lambda: is_ready(url), 30, "the API")
            yield stack
        finally:
            for name in list(stack.processes):
                stack.kill(name)
            for module in (
                "worker.children.runner",
                "worker.children.fetcher",
                "worker.children.publisher",
            ):
                for left in stack.runners(module):
                    left.kill()
            database.dispose()


def is_ready(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/readyz", timeout=2).is_success
    except httpx2.TransportError:
        return False

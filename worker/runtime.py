"""What a worker process holds while it lives."""

import math
import os
import socket
import threading
from dataclasses import dataclass, field, replace
from typing import Any

from app.artifacts.opening import open_store
from app.artifacts.store import ArtifactStore
from app.db.session import Database, connect
from spq_core.memory import LIMIT_VARIABLE
from worker.children.messages import OF_FETCHER, OF_PUBLISHER, OF_RUNNER, Message
from worker.children.process import ChildProgram, Stopping
from worker.sandbox.usage import Limits
from worker.settings import WorkerSettings
from worker.threads import SPINNING_THREADS

OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


@dataclass(frozen=True, slots=True)
class Runtime:
    """Settings, database, and the child programs."""

    settings: WorkerSettings
    database: Database
    store: ArtifactStore
    worker_id: str
    stopping: Stopping = field(default_factory=threading.Event)
    """Set when this worker is told to end: attempts give their jobs back."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What clients may know of this worker."""

    def fetcher(self) -> ChildProgram:
        """Talks to the Hub for reading."""
        return self._program("worker.children.fetcher", _proxies(), OF_FETCHER)

    def runner(self) -> ChildProgram:
        """Compresses and measures."""
        threads = {"OMP_NUM_THREADS": str(self.settings.threads)} if self.settings.threads else {}
        spinning = SPINNING_THREADS if self.settings.spin else {}
        most = self.settings.max_run_bytes
        memory = {LIMIT_VARIABLE: str(most)} if most else {}
        extra = OFFLINE | threads | spinning | memory
        return replace(
            self._program("worker.children.runner", extra, OF_RUNNER),
            limits=Limits(
                memory_bytes=self.settings.max_run_bytes or math.inf,
                disk_bytes=self.settings.max_run_disk_bytes or math.inf,
            ),
            isolated=True,
        )

    def publisher(self) -> ChildProgram:
        """Talks to the Hub for writing."""
        return self._program("worker.children.publisher", _proxies(), OF_PUBLISHER)

    def _program(
        self, module: str, extra: dict[str, str], says: tuple[type[Message], ...]
    ) -> ChildProgram:
        settings = self.settings
        return ChildProgram(
            module, extra, settings.stall_seconds, settings.grace_seconds,
            says=says,
        )  # fmt: skip


def _proxies() -> dict[str, str]:
    """How to reach the Hub from here; only for the children that talk to it."""
    names = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
    spelled = (spelling for name in names for spelling in (name, name.lower()))
    return {name: os.environ[name] for name in spelled if name in os.environ}


def make_runtime(settings: WorkerSettings, stopping: Stopping) -> Runtime:
    """Connect; one per process."""
    worker_id = f"{socket.gethostname()}:{os.getpid()}"
    database = connect(settings.database_url.get_secret_value())
    return Runtime(settings, database, open_store(settings.store_address), worker_id, stopping)

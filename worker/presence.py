"""Tell the database that this worker is there, and what it is, as long as it lives."""

import os
import platform
import shutil
import signal
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from app.db.session import Database
from app.db.workers import forget_worker, note_presence
from app.telemetry import log
from worker.sandbox.launcher import isolate
from worker.settings import WorkerSettings

EVERY_SECONDS = 15.0
LIBRARIES = ("spq", "torch", "transformers")


def facts(settings: WorkerSettings) -> dict[str, Any]:
    """What clients may know of a worker; how its runs are kept apart above all."""
    return {
        "isolation": isolation(),
        "device": settings.device,
        "threads": settings.threads or os.cpu_count(),
        "max_run_bytes": settings.max_run_bytes,
        "max_run_disk_bytes": settings.max_run_disk_bytes,
        "platform": platform.platform(terse=True),
        "versions": {name: version(name) for name in LIBRARIES},
    }


def isolation() -> list[str]:
    """What `worker.sandbox.launcher` can do here, found out by a child that does it."""
    ours, its = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(its, ",".join(isolate()).encode())
        os._exit(0)
    os.close(its)
    with os.fdopen(ours) as answer:
        found = answer.read()
    os.waitpid(child, 0)
    return [name for name in found.split(",") if name]


@dataclass(slots=True)
class Presence:
    """A thread; it ends with the process."""

    database: Database
    worker_id: str
    facts: dict[str, Any]
    scratch_dir: Path
    _stop: threading.Event = field(default_factory=threading.Event)

    def start(self) -> None:
        """Begin."""
        threading.Thread(target=self._run, name="presence", daemon=True).start()

    def stop(self) -> None:
        """This worker is going."""
        self._stop.set()
        with suppress(SQLAlchemyError):
            forget_worker(self.database, self.worker_id)

    def _room(self) -> dict[str, int]:
        """Of the scratch folder; nothing where it cannot be made, which the first job will tell."""
        with suppress(OSError):
            self.scratch_dir.mkdir(parents=True, exist_ok=True)
            return {"scratch_free_bytes": shutil.disk_usage(self.scratch_dir).free}
        return {}

    def _run(self) -> None:
        # Signals are the main thread's business.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
        while not self._stop.is_set():
            try:
                note_presence(self.database, self.worker_id, self.facts | self._room())
            except SQLAlchemyError as error:
                log.warning("presence_unknown", error=type(error).__name__)
            self._stop.wait(EVERY_SECONDS)

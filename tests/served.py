"""A real API at an address, in a thread of the test."""

import hashlib
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import uvicorn
from pydantic import SecretStr

from app.artifacts.opening import open_store
from app.artifacts.store import StoredFile
from app.db.attempts import FinishedFile
from app.db.keys import SCOPES, create_key
from app.db.session import Database
from app.main import create_app
from app.settings import ApiSettings
from tests.servers import free_port


@dataclass
class Site:
    url: str
    database: Database
    jobs: dict[str, str]
    folder: Path | None = None
    """Where its artifacts are, below `artifacts`."""
    keys: dict[str, str] = field(default_factory=dict)

    def key(self, tenant="alice", scopes=SCOPES):
        name = f"{tenant} {scopes}"
        if name not in self.keys:
            with self.database.write() as session:
                _, self.keys[name] = create_key(
                    session, name="browser", tenant=tenant, scopes=scopes, days=None
                )
        return self.keys[name]

    def keep(self, job: str, contents: dict[str, bytes]) -> list[FinishedFile]:
        """Put files into the store, as the job's first attempt does."""
        store = open_store(str(self.folder / "artifacts"))
        scratch = self.folder / job
        scratch.mkdir()
        work = store.take_over(job, 1, scratch)
        files = []
        for name, content in contents.items():
            target = work / "artifact" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
            files.append(StoredFile(name, len(content), hashlib.sha256(content).hexdigest()))
        store.keep(job, work, files)
        return [FinishedFile(path=one.path, bytes=one.bytes, sha256=one.sha256) for one in files]


@contextmanager
def served(database_url: str, folder: Path, models: Path) -> Iterator[str]:
    """A service without its background threads, at an address."""
    settings = ApiSettings(
        database_url=SecretStr(database_url), broker_url=SecretStr("redis://127.0.0.1:9/0"),
        artifact_dir=folder / "artifacts", model_dirs=str(models), hub_endpoint="http://127.0.0.1:9",
    )  # fmt: skip
    port, app = free_port(), create_app(settings)
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            port=port,
            log_level="error",
            lifespan="off",
            timeout_graceful_shutdown=8,
        )
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if not probe.connect_ex(("127.0.0.1", port)):
                break
        time.sleep(0.05)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(10)
        app.state.database.dispose()

"""A running API without its background threads: tests call housekeeping themselves."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cryptography.fernet import Fernet
from fastapi.testclient import TestClient
from pydantic import SecretStr

from app.db.keys import SCOPES, create_key
from app.db.session import Database
from app.main import create_app
from app.settings import ApiSettings


@dataclass
class Api:
    client: TestClient
    database: Database
    artifact_dir: Path
    keys: dict[str, str] = field(default_factory=dict)

    def headers(self, tenant: str = "alice", scopes: tuple[str, ...] = SCOPES) -> dict[str, str]:
        name = f"{tenant}:{','.join(scopes)}"
        if name not in self.keys:
            with self.database.write() as session:
                _, self.keys[name] = create_key(
                    session, name=name, tenant=tenant, scopes=scopes, days=None
                )
        return {"Authorization": f"Bearer {self.keys[name]}"}

    def submit(self, tenant: str = "alice", **changes: object) -> dict:
        body = {"model": {"repo_id": "org/tiny"}, "recipe": "int8"} | changes
        answer = self.client.post("/jobs", json=body, headers=self.headers(tenant))
        assert answer.status_code == 202, answer.text
        return answer.json()


@pytest.fixture
def hub_endpoint() -> str:
    """Where no Hub answers; tests that need one have another."""
    return "http://127.0.0.1:9"


@pytest.fixture
def webhook_networks(request: pytest.FixtureRequest) -> str:
    """Loopback, for tests whose endpoint is there."""
    return "127.0.0.0/8" if "endpoint" in request.fixturenames else ""


@pytest.fixture
def artifact_store() -> str | None:
    """An object store, for tests that want one; all others keep artifacts in a folder."""
    return None


@pytest.fixture
def api(
    database_url: str,
    tmp_path: Path,
    tiny_llama: Path,
    hub_endpoint: str,
    webhook_networks: str,
    artifact_store: str | None,
) -> Iterator[Api]:
    settings = ApiSettings(
        database_url=SecretStr(database_url),
        broker_url=SecretStr("redis://127.0.0.1:9/0"),
        artifact_dir=tmp_path / "artifacts",
        artifact_store=artifact_store,
        model_dirs=str(tiny_llama.parent),
        max_body_bytes=20_000,
        hub_endpoint=hub_endpoint,
        secret_keys=SecretStr(Fernet.generate_key().decode()),
        webhook_networks=webhook_networks,
    )
    app = create_app(settings)
    client = TestClient(app, raise_server_exceptions=False)
    yield Api(client, app.state.database, tmp_path / "artifacts")
    client.close()
    app.state.database.dispose()

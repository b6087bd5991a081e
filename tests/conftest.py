"""Shared fixtures: databases, broker, tiny and real models, the reference data."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import hypothesis
import psycopg
import pytest

from app.artifacts.opening import open_store
from app.artifacts.store import ArtifactStore
from app.db.migrate import upgrade
from app.db.session import Database, connect
from tests.models import real_model
from tests.servers import S3Server, fresh_database, postgres, s3_server
from worker.standalone.broker import embedded_broker

hypothesis.settings.register_profile("default", deadline=None, derandomize=True)
hypothesis.settings.load_profile("default")
SHARED = Path(__file__).resolve().parents[2] / "shared"
LOOPBACK = ("127.", "::1", "localhost")
TEMPLATE = "spq_template"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole deployments first: they take longest, and mostly wait, so none of them should begin last."""
    items.sort(key=lambda item: not {"e2e", "faults"} & set(item.path.parts))


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only this machine may be connected to."""
    real = socket.socket.connect

    def guarded(self, address):
        if isinstance(address, tuple) and not str(address[0]).startswith(LOOPBACK):
            raise OSError(f"a test tried to reach {address[0]}")
        return real(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    with postgres() as base_url:
        address = base_url.replace("+psycopg", "") + "/postgres"
        with psycopg.connect(address, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {TEMPLATE}")
        upgrade(f"{base_url}/{TEMPLATE}")
        yield base_url


@pytest.fixture
def postgres_url(postgres_server: str) -> Iterator[str]:
    """A migrated, empty Postgres database."""
    with fresh_database(postgres_server, TEMPLATE) as url:
        yield url


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """A migrated, empty SQLite database."""
    url = f"sqlite:///{tmp_path / 'spq.db'}"
    upgrade(url)
    return url


@pytest.fixture(autouse=True)
def _figures_of_this_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test finds what another has measured, or leaves anything in the user's home."""
    monkeypatch.setenv("SPQ_FIGURES_DIR", str(tmp_path / "figures"))


@pytest.fixture(params=["postgres", "sqlite"])
def database_url(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(f"{request.param}_url"))


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    made = connect(database_url)
    yield made
    made.dispose()


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A server that speaks S3."""
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def object_store(s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of an empty object store, which this process may use."""
    for name, value in s3.variables.items():
        monkeypatch.setenv(name, value)
    return f"s3://{s3.BUCKET}/{tmp_path.name}"


@pytest.fixture(params=["local", "object"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ArtifactStore:
    """An empty artifact store of each kind."""
    if request.param == "local":
        return open_store(str(tmp_path / "artifacts"))
    return open_store(request.getfixturevalue("object_store"))


@pytest.fixture(scope="session")
def broker_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with embedded_broker(tmp_path_factory.mktemp("broker")) as url:
        yield url


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.models import save_tiny

    return save_tiny(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M-Instruct, from the PyPI package that `make` installs."""
    return real_model(tmp_path_factory.mktemp("models") / "smollm2")


@pytest.fixture(scope="session")
def shared() -> Path:
    """Reference data beside the project."""
    if not SHARED.is_dir():
        pytest.skip("the folder ../shared with reference data is not here")
    return SHARED

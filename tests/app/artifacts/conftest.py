"""Both stores; the object store on a server that speaks S3."""

import pytest

from app.artifacts.local import LocalStore
from app.artifacts.object_store import connect
from tests.servers import S3Server


@pytest.fixture(params=["local", "object"])
def store(request, tmp_path, monkeypatch):
    if request.param == "local":
        return LocalStore(tmp_path / "artifacts")
    for name, value in request.getfixturevalue("s3").variables.items():
        monkeypatch.setenv(name, value)
    return connect(f"s3://{S3Server.BUCKET}/{tmp_path.name}")

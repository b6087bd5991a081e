"""The OpenAPI document of the API, for docs/."""

from pathlib import Path
from typing import Any

from pydantic import SecretStr

from app.main import create_app
from app.settings import ApiSettings


def document() -> dict[str, Any]:
    """The document, which no setting changes but the package's version, left out here."""
    nowhere = SecretStr("sqlite://")
    settings = ApiSettings(
        database_url=nowhere, broker_url=SecretStr("redis://localhost"), artifact_dir=Path("unused")
    )
    found: dict[str, Any] = create_app(settings).openapi()
    found["info"]["version"] = "v1"
    return found

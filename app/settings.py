"""Settings from the environment, read once where a process starts. Nothing here is a global."""

import ipaddress
import os
from pathlib import Path
from typing import Annotated, Self

from pydantic import AliasChoices, Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from app.secrets import make_sealer
from spq_core.models.reading import AS_IT_IS, Reading


class ServiceSettings(BaseSettings):
    """What API and worker share; each field is read from `SPQ_<NAME>`."""

    model_config = SettingsConfigDict(
        env_prefix="SPQ_", frozen=True, extra="ignore", hide_input_in_errors=True,
        populate_by_name=True, env_ignore_empty=True, use_attribute_docstrings=True,
    )  # fmt: skip

    database_url: SecretStr
    """SQLAlchemy URL: postgresql+psycopg://… or sqlite:///…"""
    broker_url: SecretStr
    """Celery broker: redis://… or redis+socket://…; its own database or instance."""
    artifact_dir: Path | None = None
    """A folder that API and workers share, for finished artifacts and where runs stand."""
    artifact_store: Annotated[str | None, Field(pattern=r"^s3://")] = None
    """An object store in its place: s3://bucket/prefix; keys and endpoint come from the AWS_* variables."""
    model_dirs: str = ""
    """Folders whose subfolders may be named as local models, separated like PATH."""
    data_dir: Path | None = None
    """Local evaluation texts, <name>-test.txt and <name>-valid.txt."""
    hub_endpoint: Annotated[
        str | None, Field(validation_alias=AliasChoices("SPQ_HUB_ENDPOINT", "HF_ENDPOINT"))
    ] = None
    """Another Hub than the public one."""
    lease_seconds: Annotated[float, Field(ge=1)] = 60
    """How long an attempt owns a job after its last heartbeat."""
    max_attempts: Annotated[int, Field(ge=1, le=10)] = 3
    """How often a job is begun before it fails; attempts that ended by no fault of its own do not count."""
    secret_keys: SecretStr | None = None
    """Fernet keys, comma-separated, that stored secrets are encrypted with; the first one seals."""
    visibility_timeout_seconds: Annotated[int, Field(ge=60)] = 3600
    """How long the broker waits for a worker that took a message and said nothing before another one gets it."""

    @field_validator("secret_keys")
    @classmethod
    def _are_keys(cls, keys: SecretStr | None) -> SecretStr | None:
        make_sealer(keys)
        return keys

    @model_validator(mode="after")
    def _have_a_store(self) -> Self:
        if self.artifact_dir is None and self.artifact_store is None:
            raise ValueError(
                "set SPQ_ARTIFACT_DIR to a folder, or SPQ_ARTIFACT_STORE to s3://bucket/prefix"
            )
        return self

    @property
    def store_address(self) -> str:
        """Where artifacts are kept; an object store goes before a folder."""
        return self.artifact_store or str(self.artifact_dir)

    def model_folders(self) -> tuple[Path, ...]:
        """The allow-listed parents of local models."""
        return tuple(Path(part).resolve() for part in self.model_dirs.split(os.pathsep) if part)

    def local_model(self, name: str, reading: Reading = AS_IT_IS) -> Path | None:
        """The folder of a model: of that name in one of them, or a subfolder of that."""
        found = (folder / name / reading.subfolder for folder in self.model_folders())
        file = reading.file or "config.json"
        return next((path for path in found if (path / file).is_file()), None)


class ApiSettings(ServiceSettings):
    """What only the API needs."""

    housekeeping_seconds: Annotated[float, Field(gt=0)] = 1.0
    """Pause between two rounds of the outbox relay."""
    sweep_seconds: Annotated[float, Field(gt=0)] = 15.0
    """Pause between two looks for lost attempts and forgotten jobs."""
    notify_again_seconds: Annotated[
        float,
        Field(
            gt=0,
            validation_alias=AliasChoices("SPQ_NOTIFY_AGAIN_SECONDS", "SPQ_RING_AGAIN_SECONDS"),
        ),
    ] = 300.0
    """A job queued this long since it was last announced is announced again."""
    submissions_per_minute: Annotated[int, Field(ge=1)] = 600
    """Jobs one API key may submit in a minute."""
    keep_artifacts_days: Annotated[int, Field(ge=1)] | None = None
    """Files of finished artifacts are removed so long after their job's end; never by default."""
    keep_logs_days: Annotated[int, Field(ge=1)] | None = None
    """Lines of logs are removed so long after their job's end."""
    keep_events_days: Annotated[int, Field(ge=1)] | None = None
    """The history is removed so long after its job's end."""
    keep_jobs_days: Annotated[int, Field(ge=1)] | None = None
    """Jobs are forgotten altogether, with all that belongs to them."""
    webhook_networks: str = ""
    """Networks of your own, like 10.0.0.0/8,…, that webhooks may reach; all others must be public."""
    max_body_bytes: Annotated[int, Field(ge=1024)] = 1 << 20
    """Of one request."""

    @field_validator("webhook_networks")
    @classmethod
    def _are_networks(cls, text: str) -> str:
        for part in text.split(","):
            if part.strip():
                ipaddress.ip_network(part.strip())
        return text

    def trusted_networks(self) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
        """Where webhooks may go though it is not public."""
        parts = (part.strip() for part in self.webhook_networks.split(","))
        return tuple(ipaddress.ip_network(part) for part in parts if part)

"""Settings of the worker process, from `SPQ_*` variables."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, SecretStr

from app.settings import ServiceSettings


class WorkerSettings(ServiceSettings):
    """What only a worker needs."""

    scratch_dir: Path
    """Working space; one folder per attempt, removed when the attempt ends."""
    hub_token: SecretStr | None = None
    """Reads gated sources and publishes; goes to the fetcher and the publisher, never to the runner."""
    hub_token_tenants: str = ""
    """Tenants, separated by commas, that may use `hub_token`; by default all. Others bring their own."""
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"
    """Where models are measured: auto, cpu, cuda or cuda:N."""
    threads: Annotated[int, Field(ge=1)] | None = None
    """CPU threads of the runner; by default all cores."""
    spin: bool = False
    """Let the runner's idle threads wait awake for a moment. Decoding, many short parallel operations, is
    half as fast again on two cores; right where no other run shares these cores."""
    heartbeat_seconds: Annotated[float, Field(gt=0)] = 3.0
    """Pause between two signs of life of an attempt."""
    stall_seconds: Annotated[float, Field(gt=0)] = 3600.0
    """A runner silent for this long is taken for dead."""
    max_run_bytes: Annotated[int, Field(gt=0)] | None = None
    """Resident memory of a run; above it the run is killed and its job fails. No limit by default."""
    max_run_disk_bytes: Annotated[int, Field(gt=0)] | None = None
    """Disk space of a run, a fetched model included; above it the run is killed and its job fails."""
    max_figures_bytes: Annotated[int, Field(ge=0)] = 20 << 30
    """Figures of sources and of plain INT8 that later jobs reuse, and what they are compared by, in the scratch folder."""
    run_reads: str = ""
    """More files and folders that runs may read, separated by colons, where Landlock keeps them from others:
    drivers or libraries in unusual places."""
    checkpoint_seconds: Annotated[float, Field(gt=0)] = 60.0
    """With an object store: pause between two copies of a run's state, from which another worker may go on."""
    grace_seconds: Annotated[float, Field(ge=0)] = 10.0
    """Time between asking a child to end and killing its process group."""
    max_model_bytes: Annotated[int, Field(gt=0)] = 200 << 30
    """Weights of a model that is fetched."""

    def token_tenants(self) -> frozenset[str]:
        """Who may use the service's Hub token; empty for all."""
        return frozenset(part.strip() for part in self.hub_token_tenants.split(",") if part.strip())

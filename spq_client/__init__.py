"""Talk to an spq service from Python: submit, wait, stream, download, sweep. Imports no torch.

from spq_client import Client

with Client() as spq:
job = spq.submit("HuggingFaceTB/SmolLM2-135M-Instruct", "balanced", evaluation={"limit": 32})
job = spq.wait(job["id"])
spq.download(job["id"], "./small")
"""

from spq_client.aio import AsyncClient
from spq_client.client import Client
from spq_client.errors import (
    AuthenticationError,
    ConflictError,
    DamagedDownloadError,
    InvalidRequestError,
    JobFailedError,
    NotFoundError,
    RateLimitedError,
    ServiceError,
    SpqClientError,
    UnavailableError,
    WaitTimeoutError,
)
from spq_client.streams import Event

__all__ = [
    "AsyncClient", "AuthenticationError", "Client", "ConflictError", "DamagedDownloadError", "Event", "InvalidRequestError", "JobFailedError",
    "NotFoundError", "RateLimitedError", "ServiceError", "SpqClientError", "UnavailableError", "WaitTimeoutError",
]  # fmt: skip

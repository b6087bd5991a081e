"""How a child program's run ended, when it did not end well.

ChildError
├── ChildFailedError     it reported an error: the job fails
├── ChildRetryError      it was killed, stalled, or asked for another try
├── CancelRequestedError the client wants the job to stop
├── DrainRequestedError  the worker is being stopped: another one goes on with the job
└── LeaseLostError       another attempt may own the job: write nothing more
"""

import errno
from typing import Any

DISK_FULL = "insufficient_disk"


class ChildError(Exception):
    """Base class."""


class ChildFailedError(ChildError):
    """The child reported an error that would happen again."""

    def __init__(self, error: dict[str, Any]) -> None:
        super().__init__(error)
        self.error = error


def failed(code: str, message: str) -> ChildFailedError:
    """An error of ours that trying again does not help."""
    return ChildFailedError({"code": code, "message": message, "retryable": False})


class ChildRetryError(ChildError):
    """The attempt failed for a reason that may be gone next time."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


class CancelRequestedError(ChildError):
    """The client asked for the job to stop."""


class DrainRequestedError(ChildError):
    """The worker is being stopped."""


class LeaseLostError(ChildError):
    """This attempt no longer owns its job."""


def disk_is_full(error: BaseException) -> bool:
    """Whether an error says that there is no room left; safetensors says so in words only."""
    if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return True
    return f"os error {errno.ENOSPC}" in str(error)

"""How a child program's run ended, when it did not end well.

ChildError
├── ChildFailedError     it reported an error: the job fails
├── ChildRetryError      it was killed, stalled, or asked for another try
├── CancelRequestedError the client wants the job to stop
├── DrainRequestedError  the worker is being stopped: another one goes on with the job
└── LeaseLostError       another attempt may own the job: write nothing more
"""

from typing import Any

from spq_core.machine import DISK_FULL, machine_failure


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
    """Whether an error says that there is no room left."""
    failure = machine_failure(error)
    return failure is not None and failure.code == DISK_FULL

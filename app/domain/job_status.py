"""The life of a compression job: which statuses exist and which moves are legal.

    queued ──▶ running ──▶ succeeded
      │ ▲        │ │ ├───▶ failed
      │ └────────┘ │ │
      │ (worker    │ └──▶ canceling ──▶ canceled
      │  lost)     │
      ├────────────┴────▶ failed      (a deadline passed, attempts used up)
      └─────────────────▶ canceled

`running → queued` is the only backward move: the worker was lost and attempts are left. Terminal
statuses never change; the database refuses it.
"""

from enum import StrEnum


class JobStatus(StrEnum):
    """What a client sees."""

    QUEUED = "queued"
    RUNNING = "running"
    CANCELING = "canceling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"


TERMINAL = frozenset({JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELED})
RETRYABLE = frozenset({JobStatus.FAILED, JobStatus.CANCELED})
OWNED = frozenset({JobStatus.RUNNING, JobStatus.CANCELING})
"""Statuses in which one attempt holds a lease on the job."""

_SOURCES: dict[JobStatus, frozenset[JobStatus]] = {
    JobStatus.QUEUED: frozenset({JobStatus.RUNNING}),
    JobStatus.RUNNING: frozenset({JobStatus.QUEUED}),
    JobStatus.CANCELING: frozenset({JobStatus.RUNNING}),
    JobStatus.SUCCEEDED: frozenset({JobStatus.RUNNING}),
    JobStatus.FAILED: frozenset({JobStatus.QUEUED, JobStatus.RUNNING}),
    JobStatus.CANCELED: frozenset({JobStatus.QUEUED, JobStatus.CANCELING}),
}


def sources_of(target: JobStatus) -> frozenset[JobStatus]:
    """Statuses from which a job may move to `target`."""
    return _SOURCES[target]

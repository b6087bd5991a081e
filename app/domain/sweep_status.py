"""The life of a sweep, and of its members.

    running ◀──▶ paused
      │  │         │
      │  └─▶ canceling ──▶ canceled
      ▼
    finished | failed      ──▶ running again, when failed members are retried

A member waits until the controller makes a job of it, and has that job's status from then on; one that is not made is skipped.
"""

from enum import StrEnum

from app.domain.job_status import TERMINAL


class SweepStatus(StrEnum):
    """What a client sees."""

    RUNNING = "running"
    PAUSED = "paused"
    CANCELING = "canceling"
    FINISHED = "finished"
    FAILED = "failed"
    """No member has figures."""
    CANCELED = "canceled"


ENDED = frozenset({SweepStatus.FINISHED, SweepStatus.FAILED, SweepStatus.CANCELED})
WAITING, SKIPPED = "waiting", "skipped"
MEMBER_ENDED = frozenset({*TERMINAL, SKIPPED})

"""Keep a lease alive while a job runs, and learn that the client wants it stopped."""

import threading
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from sqlalchemy.exc import SQLAlchemyError

from app.db.attempts import Attempt, LeaseReply
from app.domain.errors import FencedError
from app.telemetry import log


@dataclass(slots=True)
class Heartbeat:
    """A thread that renews the lease. Use as a context manager around an attempt.

    An attempt that cannot renew until its lease must have ended counts as lost: another may have
    the job already, so this one has to stop itself.
    """

    attempt: Attempt
    interval_seconds: float
    lease_seconds: float
    canceled: threading.Event = field(default_factory=threading.Event)
    lost: threading.Event = field(default_factory=threading.Event)
    overdue: threading.Event = field(default_factory=threading.Event)
    renewed_at: float = field(default_factory=time.monotonic)
    """By `time.monotonic`, before the lease was asked for: it ends no earlier than its length after that."""
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=30)

    def _run(self) -> None:
        while not self._stop.is_set() and not self.lost.is_set():
            try:
                started = time.monotonic()
                wish = self.attempt.renew(self.lease_seconds)
                if wish is LeaseReply.CANCEL:
                    self.canceled.set()
                elif wish is LeaseReply.DEADLINE:
                    self.overdue.set()
                self.renewed_at = started
            except FencedError:
                self.lost.set()
            except SQLAlchemyError as error:
                log.warning("heartbeat_failed", error=type(error).__name__)
                if self.overran():
                    self.lost.set()
            self._stop.wait(self.interval_seconds)

    def overran(self) -> bool:
        """Whether the lease must have ended, though the thread may not know: it can hang in a connection."""
        return time.monotonic() - self.renewed_at > self.lease_seconds

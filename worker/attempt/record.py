"""An attempt's writes to the database, which may be away for a while."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from app.db.attempts import Attempt
from app.db.session import is_away
from worker.attempt.heartbeat import Heartbeat
from worker.attempt.results import shown_progress
from worker.children.messages import Progressed
from worker.errors import LeaseLostError

DATABASE_PAUSE_SECONDS = 1.0
LONGEST_STAGE = 64
"""Characters of the column."""


@dataclass(frozen=True, slots=True)
class Record:
    """What may be written while the attempt owns its job. All of it may raise `LeaseLostError` or `FencedError`."""

    attempt: Attempt
    heartbeat: Heartbeat
    lease_seconds: float

    def write(self, change: Callable[[], object]) -> None:
        """Make a change, waiting out the database's absence for as long as the lease can last."""
        while True:
            try:
                change()
            except SQLAlchemyError as error:
                if not is_away(error):
                    raise
                if self.heartbeat.lost.is_set() or self.heartbeat.overran():
                    raise LeaseLostError from None
                time.sleep(DATABASE_PAUSE_SECONDS)
            else:
                return

    def renew(self) -> None:
        """Make sure that the job is this attempt's."""
        self.write(lambda: self.attempt.renew(self.lease_seconds))

    def progress(self, told: Progressed, course: Mapping[str, Any], run_left: float | None) -> None:
        """Note where the run is, where that is among the job's stages (see `Course.take`), and seconds until its end."""
        stage = told.phase.title[:LONGEST_STAGE]
        self.write(
            lambda: self.attempt.progress(
                stage,
                {**shown_progress(told), **course},
                stage_left=told.phase_left,
                run_left=run_left,
            )
        )

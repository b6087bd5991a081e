"""Where an attempt is among the stages of its job."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from spq_core.estimate.stages import Stage, stage_of
from worker.children.messages import Progressed

MOST = 0.99
"""Of a job that has not ended."""


def _instant() -> str:
    return datetime.now(UTC).isoformat()


@dataclass(slots=True)
class Course:
    """Takes in what a run reports; tells which stage it is at, since when, and how much of the whole is done."""

    planned: tuple[Stage, ...]
    note: Callable[[str], None]
    """Writes a line of the job's log, when a stage begins or ends."""
    _times: dict[str, dict[str, Any]] = field(default_factory=dict)
    _now: str | None = None
    _began: float = field(default_factory=time.monotonic)
    _stage_began: float = 0.0
    _furthest: float = 0.0

    def take(self, told: Progressed) -> dict[str, Any]:
        """What to show with a report: `stage_id`, `overall_fraction`, and `stages` by id with their times."""
        stage = stage_of(told.phase.id) or self._now
        if stage is not None and stage != self._now:
            self._change(stage)
        if stage is not None:
            self._times[stage] |= {"done": told.done, "total": told.total}
        self._furthest = max(self._furthest, self._fraction(told))
        return {
            "stage_id": stage,
            "overall_fraction": round(self._furthest, 4),
            "stages": {name: dict(times) for name, times in self._times.items()},
        }

    def end(self) -> None:
        """The last stage is done."""
        self._end_stage()
        self._now = None

    def _change(self, stage: str) -> None:
        self._end_stage()
        known = self._times.get(stage, {"started_at": _instant()})
        self._times[stage] = {**known, "ended_at": None}
        self._now, self._stage_began = stage, time.monotonic()
        place = self._place(stage)
        if place is not None:
            self.note(f"stage {place + 1} of {len(self.planned)}: {self.planned[place].title}")

    def _end_stage(self) -> None:
        if self._now is None:
            return
        self._times[self._now]["ended_at"] = _instant()
        place = self._place(self._now)
        if place is not None:
            seconds = time.monotonic() - self._stage_began
            self.note(f"{self.planned[place].title}: done after {seconds:.1f} s")

    def _place(self, stage: str) -> int | None:
        return next((at for at, one in enumerate(self.planned) if one.id == stage), None)

    def _fraction(self, told: Progressed) -> float:
        """By time where the end is foreseen, else by stages."""
        elapsed = time.monotonic() - self._began
        if told.run_left is not None:
            return min(MOST, elapsed / max(elapsed + told.run_left, 1e-9))
        place = None if self._now is None else self._place(self._now)
        if place is None:
            return 0.0
        within = min(1.0, told.done / max(1, told.total))
        return min(MOST, (place + within) / len(self.planned))

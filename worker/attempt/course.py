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
TELLING = 0.05
"""Share of a job behind which its own pace tells more than an estimate."""


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
    _phases: dict[str, list[str]] = field(default_factory=dict)
    """Those of each stage that have begun."""

    def take(self, told: Progressed) -> dict[str, Any]:
        """What to show with a report: `stage_id`, `overall_fraction`, and `stages` by id with their times."""
        stage = stage_of(told.phase.id) or self._now
        if stage is not None and stage != self._now:
            self._change(stage)
        if stage is not None:
            seen = self._phases.setdefault(stage, [])
            if told.phase.id not in seen:
                seen.append(told.phase.id)
            self._times[stage] |= {"done": told.done, "total": told.total}
        self._furthest = max(self._furthest, self._fraction(told))
        return {
            "stage_id": stage,
            "overall_fraction": round(self._furthest, 4),
            "stages": {name: dict(times) for name, times in self._times.items()},
        }

    def left(self, told: Progressed) -> float | None:
        """Seconds until the job's end: by its own pace once that tells something, before by the estimate."""
        elapsed = time.monotonic() - self._began
        if self._furthest < TELLING:
            return told.run_left
        by_pace = elapsed * (1 - self._furthest) / self._furthest
        return round(max(by_pace, told.phase_left or 0.0), 1)

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
        """What stages cost that are behind it, and its own part of its stage, of what all cost."""
        place = None if self._now is None else self._place(self._now)
        if self._now is None or place is None:
            return 0.0
        stage = self.planned[place]
        phases = self._phases[self._now]
        ended = phases.index(told.phase.id) if told.phase.id in phases else len(phases) - 1
        within = (ended + min(1.0, told.done / max(1, told.total))) / max(stage.phases, len(phases))
        before = sum(one.cost for one in self.planned[:place])
        whole = sum(one.cost for one in self.planned)
        return min(MOST, (before + within * stage.cost) / whole)

"""How long work reports itself, and how it learns that it should stop."""

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Protocol, runtime_checkable


class PhaseKind(StrEnum):
    """What a phase is about; for metrics, which need few names."""

    DOWNLOADING = "downloading"
    PREFLIGHT = "preflight"
    SENSITIVITY = "sensitivity"
    COMPRESSING = "compressing"
    RECOVERY = "recovery"
    LOAD_GATE = "load gate"
    LOAD = "load"
    THROUGHPUT = "throughput"
    SCORING = "perplexity"
    PUBLISHING = "publishing"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Phase:
    """What a run is at."""

    kind: PhaseKind
    id: str
    """Its own within the run."""
    title: str
    """For people."""


def phase(kind: PhaseKind) -> Phase:
    """A phase that a run has once."""
    return Phase(kind, kind.value, kind.value)


@runtime_checkable
class Progress(Protocol):
    """Receives the course of a run. Raise from any method to stop the run."""

    def begin(self, phase: Phase, total: int, unit: str) -> None:
        """A phase begins that will advance `total` times, counted in `unit`."""
        ...

    def advance(self, message: str) -> None:
        """One unit of the current phase is done."""
        ...

    def busy(self, message: str) -> None:
        """The current unit takes long and goes on: a run that says nothing is taken for dead."""
        ...

    def record(self, kind: str, data: dict[str, Any]) -> None:
        """A finding worth keeping: a layer report, a metric."""
        ...


class Silent:
    """Progress that nobody watches."""

    def begin(self, phase: Phase, total: int, unit: str) -> None:
        """Tell nobody."""

    def advance(self, message: str) -> None:
        """Tell nobody."""

    def busy(self, message: str) -> None:
        """Tell nobody."""

    def record(self, kind: str, data: dict[str, Any]) -> None:
        """Tell nobody."""


class OnBehalf:
    """Progress of work that is done beside the main one: its phases are named after it, its findings are its own."""

    def __init__(self, progress: Progress, name: str) -> None:
        """Report to `progress` what is done for `name`."""
        self._progress, self._name = progress, name

    def begin(self, phase: Phase, total: int, unit: str) -> None:
        """Begin a phase under another name."""
        named = replace(phase, id=f"{self._name}/{phase.id}", title=f"{self._name}: {phase.title}")
        self._progress.begin(named, total, unit)

    def advance(self, message: str) -> None:
        """One unit is done."""
        self._progress.advance(message)

    def busy(self, message: str) -> None:
        """The unit goes on."""
        self._progress.busy(message)

    def record(self, kind: str, data: dict[str, Any]) -> None:
        """Findings about something beside the result are nobody's."""

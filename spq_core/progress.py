"""How long work reports itself, and how it learns that it should stop."""

from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Progress(Protocol):
    """Receives the course of a run. Raise from any method to stop the run."""

    def stage(self, name: str, total: int, unit: str) -> None:
        """A stage begins that will advance `total` times, counted in `unit`."""
        ...

    def advance(self, message: str) -> None:
        """One unit of the current stage is done."""
        ...

    def record(self, kind: str, data: dict[str, Any]) -> None:
        """A finding worth keeping: a layer report, a metric."""
        ...


class Silent:
    """Progress that nobody watches."""

    def stage(self, name: str, total: int, unit: str) -> None:
        """Ignore."""

    def advance(self, message: str) -> None:
        """Ignore."""

    def record(self, kind: str, data: dict[str, Any]) -> None:
        """Ignore."""

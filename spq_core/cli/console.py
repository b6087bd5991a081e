"""Progress for people: a bar with an estimate on a terminal, log lines elsewhere."""

import sys
import time
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from spq_core.progress import Phase

LINE_EVERY_SECONDS = 5.0


class ConsoleProgress:
    """Writes to stderr, so that stdout stays free for results."""

    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._name, self._done, self._total, self._unit = "", 0, 0, ""
        self._last_line = 0.0
        self._began = time.monotonic()
        if sys.stderr.isatty():
            columns = (
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
            )  # fmt: skip
            self._bar = Progress(*columns, console=Console(stderr=True))
            self._bar.start()

    def begin(self, phase: Phase, total: int, unit: str) -> None:
        """Begin a phase."""
        self.show(phase.title, total, unit)

    def show(self, title: str, total: int, unit: str) -> None:
        """Begin to count something."""
        self._name, self._done, self._total, self._unit = title, 0, total, unit
        self._began = time.monotonic()
        if self._bar is not None:
            if self._task is not None:
                self._bar.update(self._task, completed=self._bar.tasks[-1].total)
            self._task = self._bar.add_task(title, total=total)
        else:
            self._line(f"{title}: {total} {unit}")

    def advance(self, message: str) -> None:
        """Count one unit."""
        self.advance_to(self._done + 1, message)

    def busy(self, message: str) -> None:
        """Show that the unit goes on."""
        self.advance_to(self._done, message)

    def advance_to(self, done: int, message: str) -> None:
        """Show that `done` units are done."""
        self._done = done
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done)
        elif time.monotonic() - self._last_line > LINE_EVERY_SECONDS:
            detail = f" ({message})" if message else ""
            self._line(
                f"{self._name}: {self._done}/{self._total} {self._unit}{detail}{self._left()}"
            )

    def _left(self) -> str:
        """How long the phase will take at its pace so far."""
        if not self._done:
            return ""
        per_unit = (time.monotonic() - self._began) / self._done
        seconds = round(per_unit * (self._total - self._done))
        return f", {seconds // 60}:{seconds % 60:02d} left"

    def record(self, kind: str, data: dict[str, Any]) -> None:
        """Findings go into the result, not on the screen."""

    def close(self) -> None:
        """Leave the terminal in order."""
        if self._bar is not None:
            self._bar.stop()

    def _line(self, text: str) -> None:
        self._last_line = time.monotonic()
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()

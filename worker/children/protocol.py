"""The child's side of the pipe: a specification comes in, JSON lines go out.

Fetcher, runner and publisher are programs of their own, so that each holds only what it needs (the
runner no token), can be killed with everything it started, and cannot hurt its supervisor.
"""

import resource
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any, TypeVar

from spq_core.errors import SpqError
from spq_core.hub.errors import HubUnavailableError
from spq_core.machine import DISK_FULL, machine_failure
from spq_core.progress import Phase, PhaseKind, phase
from worker.children.messages import Failed, Frozen, Logged, Message, Progressed
from worker.children.messages import Phase as PhaseMessage
from worker.sandbox.launcher import die_with_parent

BUG_STATUS = 2
PROGRESS_EVERY_SECONDS = 1.0
UNITS_TO_TELL = 3
LONGEST_TEXT = 10_000

Spec = TypeVar("Spec", bound=Frozen)


def emit(message: Message) -> None:
    """Send one message to the supervisor."""
    sys.stdout.write(message.model_dump_json() + "\n")
    sys.stdout.flush()


def serve(spec: type[Spec], main: Callable[[Spec], None]) -> None:
    """Read the specification from stdin, run `main`, and report how it went. Ends the process."""
    die_with_parent()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        main(spec.model_validate_json(sys.stdin.readline()))
    except SpqError as error:
        retryable = isinstance(error, HubUnavailableError) or error.code == DISK_FULL
        emit(Failed(code=error.code, message=_short(str(error)), retryable=retryable))
        sys.exit(1)
    except Exception as error:  # noqa: BLE001  the edge of a process: report, then end
        failure = machine_failure(error)
        if failure is not None:
            emit(
                Failed(
                    code=failure.code, message=_short(failure.message), retryable=failure.may_pass
                )
            )
            sys.exit(1)
        traceback.print_exc()
        message = f"{type(error).__name__}: {error}"[:500]
        emit(Failed(code="internal", message=message, retryable=False))
        sys.exit(BUG_STATUS)


def _short(text: str) -> str:
    return text[:LONGEST_TEXT]


class PipeProgress:
    """Progress as messages; at most one a second, and always the last of a phase."""

    def __init__(self, on_finished: Callable[[dict[str, Any]], None] | None = None) -> None:
        self._on_finished = on_finished
        self._phase = phase(PhaseKind.OTHER)
        self._done, self._total, self._unit = 0, 0, ""
        self._last = self._began = 0.0
        self._run_ends: float | None = None

    def begin(self, phase: Phase, total: int, unit: str) -> None:
        """Begin a phase."""
        self._phase, self._done, self._total, self._unit = phase, 0, total, unit
        self._began = time.monotonic()
        self._send("")

    def advance(self, message: str) -> None:
        """Count one unit."""
        self._done += 1
        if self._done == self._total or time.monotonic() - self._last >= PROGRESS_EVERY_SECONDS:
            self._send(message)

    def busy(self, message: str) -> None:
        """Say that the unit goes on."""
        if time.monotonic() - self._last >= PROGRESS_EVERY_SECONDS:
            self._send(message)

    def record(self, kind: str, data: dict[str, Any]) -> None:
        """Findings come with the result; an estimate is of use before, and so is a finished artifact."""
        if kind == "estimate":
            self._run_ends = time.monotonic() + data["seconds"]["expected"]
        elif kind == "finished" and self._on_finished is not None:
            self._on_finished(data)
        elif kind == "missing":
            emit(Logged(text=_short(data["message"])))

    def _send(self, message: str) -> None:
        self._last = time.monotonic()
        left = self._phase_left()
        emit(
            Progressed(
                phase=PhaseMessage.model_validate(self._phase, from_attributes=True),
                done=self._done,
                total=self._total,
                unit=self._unit,
                message=_short(message),
                phase_left=left,
                run_left=self._run_left(left),
            )
        )

    def _phase_left(self) -> float | None:
        """Seconds, if the phase's other units take as long as those that are done; None with too few of them."""
        if self._done < UNITS_TO_TELL:
            return None
        elapsed = time.monotonic() - self._began
        return round(elapsed / self._done * max(0, self._total - self._done), 1)

    def _run_left(self, of_phase: float | None) -> float | None:
        """As the estimate has it, and no less than the phase will take; None once that cannot be right."""
        if self._run_ends is None:
            return None
        expected = self._run_ends - time.monotonic()
        left = max(expected, of_phase or 0.0)
        return round(left, 1) if left > 0 else None

"""What an attempt tells those who operate the service: spans as it goes, counts when it has ended."""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from app.db.attempts import Claim
from app.db.counters import ATTEMPTS, ESTIMATE_ERROR, HUB_REQUESTS, STAGE_SECONDS, Tally, count
from worker.attempt.spans import AttemptSpans
from worker.children.messages import Phase
from worker.children.throttle import Pace
from worker.runtime import Runtime

COMPARED = ("seconds", "artifact_bytes", "compression_peak_bytes", "evaluation_peak_bytes")
GPU_PEAK = "gpu_memory_peak_bytes"


@contextmanager
def observed(runtime: Runtime, claimed: Claim) -> Iterator["Observed"]:
    """Watch an attempt for the length of the block."""
    with AttemptSpans(claimed) as spans:
        made = Observed(runtime, spans)
        try:
            yield made
        finally:
            made.end()


class Observed:
    """What is seen of one attempt."""

    def __init__(self, runtime: Runtime, spans: AttemptSpans) -> None:
        self._runtime, self._spans = runtime, spans
        self._tallies: list[Tally] = []
        self._pace = Pace()
        self._phase: Phase | None = None
        self._began = 0.0

    def phase(self, phase: Phase) -> None:
        """The attempt is in this phase now. A run that tells it too often waits."""
        self._pace.wait()
        if phase != self._phase:
            self._spans.stage(phase.title)
            self._end_phase()
            self._phase, self._began = phase, time.monotonic()

    def hub_answers(self, answers: Sequence[tuple[str, str, int]]) -> None:
        """How often a child's requests to the Hub were answered with what: operation, status, times."""
        for operation, status, times in answers:
            self._tallies += HUB_REQUESTS.more(operation, status, amount=times)

    def figures(self, document: dict[str, Any]) -> None:
        """A run has measured what an estimate foretold."""
        measured, facts = document["measured"], self._runtime.facts
        for kind, foretold in (document["estimate"] or {}).items():
            if kind in COMPARED and foretold is not None and kind in measured:
                expected = foretold["expected"] if isinstance(foretold, dict) else foretold
                ratio = measured[kind] / expected if expected else math.inf
                self._tallies += ESTIMATE_ERROR.observed(ratio, kind)
        if "gpu_peak_bytes" in measured:
            facts[GPU_PEAK] = max(facts.get(GPU_PEAK, 0), int(measured["gpu_peak_bytes"]))

    def outcome(self, text: str, *, good: bool) -> None:
        """How it ended."""
        self._spans.outcome(text, good=good)
        self._tallies += ATTEMPTS.more(text.removeprefix("retry: "))

    def end(self) -> None:
        """Keep what was counted."""
        self._end_phase()
        count(self._runtime.database, self._tallies)

    def _end_phase(self) -> None:
        if self._phase is not None:
            elapsed = time.monotonic() - self._began
            self._tallies += STAGE_SECONDS.observed(elapsed, self._phase.kind.value)

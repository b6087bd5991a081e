"""What an attempt tells those who operate the service: spans as it goes, counts when it has ended."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from app.db.attempts import Claim
from app.db.counters import ATTEMPTS, ESTIMATE_ERROR, HUB_REQUESTS, STAGE_SECONDS, Tally, count
from worker.attempt.spans import AttemptSpans
from worker.children.throttle import Pace
from worker.runtime import Runtime

STAGES = frozenset(
    {"downloading", "preflight", "load gate", "sensitivity", "recovery", "load", "throughput", "publishing"}
)  # fmt: skip
PASS, SCORING = " (pass ", "perplexity on "
COMPARED = ("seconds", "artifact_bytes", "compression_peak_bytes", "evaluation_peak_bytes")
GPU_PEAK = "gpu_memory_peak_bytes"


def stage_kind(stage: str) -> str:
    """The stage without what differs from recipe to recipe; metrics need few labels."""
    if stage in STAGES:
        return stage
    if PASS in stage:
        return "compressing"
    return "perplexity" if stage.startswith(SCORING) else "other"


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
        self._stage, self._began = "", 0.0

    def stage(self, name: str) -> None:
        """The attempt is in this stage now. A run that tells it too often waits."""
        self._pace.wait()
        if name != self._stage:
            self._spans.stage(name)
            self._end_stage()
            self._stage, self._began = name, time.monotonic()

    def hub_answers(self, answers: list[list[Any]]) -> None:
        """How often a child's requests to the Hub were answered with what: operation, status, times."""
        for operation, status, times in answers:
            self._tallies += HUB_REQUESTS.more(str(operation), str(status), amount=int(times))

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
        self._end_stage()
        count(self._runtime.database, self._tallies)

    def _end_stage(self) -> None:
        if self._stage:
            elapsed = time.monotonic() - self._began
            self._tallies += STAGE_SECONDS.observed(elapsed, stage_kind(self._stage))

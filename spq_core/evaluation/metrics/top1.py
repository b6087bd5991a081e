"""Share of tokens (0–1) where model and reference rank the same token first."""

from spq_core.evaluation.metrics.tally import Positions


class Tally:
    """Counts agreements."""

    def __init__(self) -> None:
        """Begin with no tokens."""
        self._same, self._tokens = 0, 0

    def add(self, positions: Positions) -> None:
        """Take in some positions."""
        if positions.reference_logits is None:
            return
        first = positions.logits.argmax(dim=-1)
        self._same += int((first == positions.reference_logits.argmax(dim=-1)).sum())
        self._tokens += len(positions.targets)

    def value(self) -> float | None:
        """The share."""
        return self._same / self._tokens if self._tokens else None

"""exp of the mean negative log-likelihood per token."""

import math

from torch.nn import functional

from spq_core.evaluation.metrics.tally import Positions

LARGEST_LOSS = 700.0
"""exp of more is no float."""


class Tally:
    """Sums the negative log-likelihood, in nats."""

    def __init__(self) -> None:
        """Begin with no tokens."""
        self._loss, self._tokens = 0.0, 0

    def add(self, positions: Positions) -> None:
        """Take in some positions."""
        losses = functional.nll_loss(
            positions.log_probabilities, positions.targets, reduction="sum"
        )
        self._loss += float(losses.double())
        self._tokens += len(positions.targets)

    def value(self) -> float:
        """The perplexity."""
        mean = self._loss / self._tokens
        return math.exp(min(mean, LARGEST_LOSS)) if math.isfinite(mean) else math.nan

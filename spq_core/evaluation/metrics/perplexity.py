"""exp of the mean negative log-likelihood per token."""

import math

from spq_core.evaluation.metrics.metric import Measured, MetricRule, Positions, per_token

LARGEST_LOSS = 700.0
"""exp of more is no float."""


class Rule(MetricRule):
    """Of the loss of each token, in nats."""

    ratio = "perplexity_ratio"

    def measure(self, positions: Positions) -> Measured:
        """The losses."""
        return per_token(positions.losses)

    def figure(self, mean: float) -> float:
        """The perplexity."""
        return math.exp(min(mean, LARGEST_LOSS)) if math.isfinite(mean) else math.nan

    def slope(self, mean: float) -> float:
        """The same."""
        return self.figure(mean)

"""Negative log-likelihood in bits, per byte of text (UTF-8): comparable between tokenizers."""

import math

from spq_core.evaluation.metrics.metric import Measured, MetricRule, Positions


class Rule(MetricRule):
    """Of the loss of each token in bits, divided by the bytes of text that the tokens stand for."""

    def measure(self, positions: Positions) -> Measured | None:
        """The losses, and the bytes."""
        if positions.text_bytes is None:
            return None
        return Measured(positions.losses / math.log(2), float(positions.text_bytes))

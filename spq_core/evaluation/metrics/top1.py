"""Share of tokens (0–1) where model and reference rank the same token first."""

from spq_core.evaluation.metrics.metric import Measured, MetricRule, Positions, per_token


class Rule(MetricRule):
    """Of 1 where they agree, else 0."""

    def measure(self, positions: Positions) -> Measured | None:
        """Agreements."""
        if positions.reference_logits is None:
            return None
        first = positions.logits.argmax(dim=-1)
        return per_token((first == positions.reference_logits.argmax(dim=-1)).float())

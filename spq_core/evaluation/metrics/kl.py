"""Mean KL(reference ‖ model) = Σ p (log p − log q), in nats per token."""

from torch.nn import functional

from spq_core.evaluation.metrics.metric import Measured, MetricRule, Positions, per_token


class Rule(MetricRule):
    """Of the divergence at each token. Its tail says how badly single predictions change."""

    quantiles = (0.5, 0.9, 0.99, 0.999)

    def measure(self, positions: Positions) -> Measured | None:
        """The divergences; rounding may leave one just below 0."""
        log_p = positions.reference_log_probabilities
        if log_p is None:
            return None
        log_q = positions.log_probabilities
        divergence = functional.kl_div(log_q, log_p, reduction="none", log_target=True).sum(dim=-1)
        return per_token(divergence.clamp_min(0.0))

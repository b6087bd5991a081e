"""Mean KL(reference ‖ model) = Σ p (log p − log q), in nats per token."""

from torch.nn import functional

from spq_core.evaluation.metrics.tally import Positions


class Tally:
    """Sums the divergence."""

    def __init__(self) -> None:
        """Begin with no tokens."""
        self._divergence, self._tokens = 0.0, 0

    def add(self, positions: Positions) -> None:
        """Take in some positions."""
        log_p = positions.reference_log_probabilities
        if log_p is None:
            return
        log_q = positions.log_probabilities
        divergence = functional.kl_div(log_q, log_p, reduction="sum", log_target=True)
        self._divergence += float(divergence.double())
        self._tokens += len(positions.targets)

    def value(self) -> float | None:
        """The divergence; rounding may leave a sum just below 0."""
        if not self._tokens:
            return None
        mean = self._divergence / self._tokens
        return mean if mean > 0 or mean != mean else 0.0  # noqa: PLR0124 - a NaN stays one

"""How much each expert of a layer contributes, and which stay."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor


class RunningScores:
    """Sums over the tokens that experts have seen so far."""

    def __init__(self, n_experts: int) -> None:
        """Begin with nothing."""
        self.contributions = torch.zeros(n_experts, dtype=torch.float64)
        """Σ of the router's weight times the norm of the expert's output."""
        self.tokens = torch.zeros(n_experts, dtype=torch.int64)

    def add(
        self, expert: int, weights: Float[Tensor, " n"], outputs: Float[Tensor, "n hidden"]
    ) -> None:
        """Take in what one expert made of some tokens.

        Args:
            weights: the router's, of this expert for these tokens.
        """
        norms = outputs.float().norm(dim=-1)
        self.contributions[expert] += float((weights.float() * norms).double().sum())
        self.tokens[expert] += len(outputs)

    def reap(self) -> Float[Tensor, " n_experts"]:
        """The mean contribution per routed token; 0 for experts that saw none (arXiv:2510.13999, equation 9)."""
        return self.contributions / self.tokens.clamp(min=1)


def strongest(
    scores: Float[Tensor, " n_experts"], kept: int, groups: int = 1
) -> Int64[Tensor, " kept"]:
    """Experts that stay, in order: those with the highest scores, as many of each group; of equals the first."""
    by_group = scores.view(groups, -1)
    order = by_group.sort(dim=-1, descending=True, stable=True).indices[:, : kept // groups]
    offsets = torch.arange(groups)[:, None] * by_group.shape[1]
    return (order + offsets).flatten().sort().values

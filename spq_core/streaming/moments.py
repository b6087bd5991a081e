"""First and second moments of an input, and its largest values, gathered as batches of it come."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

ROWS_AT_ONCE = 192
"""Of x xᵀ a processor computes the lower half only, so many rows of it at a time: 0.55 to 0.7 of the
time of the whole at widths of 576 to 4,096 (measured). A GPU is faster with the whole."""


@dataclass(frozen=True, slots=True)
class InputMoments:
    """First and second moments of one input over all samples and tokens, and how large it becomes."""

    mean: Float[Tensor, " n"]
    second_moment: Float[Tensor, "n n"]
    """E[x xᵀ], not centred."""
    tokens: int = 0
    """How many both are means over; 0 where that is not known."""
    peak: Float[Tensor, " n"] | None = None
    """max |x| over them; None where that is not known."""
    routed: int | None = None
    """For an expert, how many tokens its router sent it; None for what receives all tokens."""


class RunningMoments:
    """Sums over the batches so far."""

    def __init__(self, width: int, device: torch.device) -> None:
        """Begin with nothing, in float32."""
        self._total = torch.zeros(width, device=device)
        self._second = torch.zeros(width, width, device=device)
        self._peak = torch.zeros(width, device=device)
        self._tokens = 0

    @property
    def tokens(self) -> int:
        """How many have come."""
        return self._tokens

    def add(self, rows: Float[Tensor, "*batch n"]) -> None:
        """Take in a batch, in any float dtype."""
        rows = rows.flatten(0, -2).float()
        if not len(rows):
            return
        self._tokens += rows.shape[0]
        self._total += rows.sum(dim=0)
        for end in (rows.amax(dim=0), -rows.amin(dim=0)):
            torch.maximum(self._peak, end, out=self._peak)
        for start, stop in self._blocks(ROWS_AT_ONCE if rows.device.type == "cpu" else None):
            # in place: for wide layers it is hundreds of megabytes
            self._second[start:stop, :stop].addmm_(rows[:, start:stop].T, rows[:, :stop])

    def moments(self) -> InputMoments:
        """The means over everything added, of which there must be some; ends the sums."""
        for start, stop in self._blocks(ROWS_AT_ONCE):
            self._second[:start, start:stop] = self._second[start:stop, :start].T
            # Some processors' products of a block with itself are not symmetric to the last bit.
            lower = self._second[start:stop, start:stop].tril()
            self._second[start:stop, start:stop] = lower + lower.tril(-1).T
        self._total.div_(self._tokens)
        self._second.div_(self._tokens)
        return InputMoments(self._total, self._second, self._tokens, self._peak)

    def _blocks(self, size: int | None) -> list[tuple[int, int]]:
        width = len(self._total)
        return [
            (start, min(start + (size or width), width)) for start in range(0, width, size or width)
        ]

"""One width of codes for each matrix, so that all together lose least at so many bytes.

A database has, for each matrix and each width, the bytes it takes and the loss it is expected to cost; dynamic programming over the
bytes finds the choice with the least sum (Frantar & Alistarh 2022, arXiv:2208.11580, section 5: there over layers and speeds).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from spq_core.errors import RecipeError

BUCKETS = 10_000
"""Steps that bytes are counted in; each matrix is counted with the bytes of its last, begun step."""


@dataclass(frozen=True, slots=True)
class WidthOptions:
    """What one matrix may become."""

    bits: tuple[int, ...]
    bytes: tuple[float, ...]
    """Stored, by width."""
    losses: tuple[float, ...]
    """Expected KL in nats per token, by width."""


def choose_widths(
    options: Mapping[str, WidthOptions], wanted_bytes: float, fixed_bytes: float
) -> dict[str, int]:
    """A width for each matrix: least expected loss with at most `wanted_bytes` for all of them.

    Args:
        fixed_bytes: of everything else, in messages.

    Raises:
        RecipeError: with the least size that can be reached.
    """
    least = sum(min(one.bytes) for one in options.values())
    if wanted_bytes < least:
        raise RecipeError(
            f"target asks for {round(wanted_bytes + fixed_bytes):,} bytes; with these widths "
            f"this model takes at least {round(least + fixed_bytes):,}"
        )
    room = wanted_bytes - least
    step = max(room, 1.0) / BUCKETS
    best = np.zeros(BUCKETS + 1)
    chosen = []
    for one in options.values():
        extra = [math.ceil((size - min(one.bytes)) / step) for size in one.bytes]
        sums = np.full((len(extra), BUCKETS + 1), np.inf)
        for at, (more, loss) in enumerate(zip(extra, one.losses, strict=True)):
            if more <= BUCKETS:
                sums[at, more:] = best[: BUCKETS + 1 - more] + loss
        chosen.append((extra, sums.argmin(axis=0)))
        best = sums.min(axis=0)
    place, widths = BUCKETS, {}
    for (name, one), (extra, picks) in reversed(list(zip(options.items(), chosen, strict=True))):
        pick = int(picks[place])
        widths[name] = one.bits[pick]
        place -= extra[pick]
    return dict(reversed(widths.items()))

"""One level for each part of a model, so that all together lose least at so many bytes.

A part is a matrix, or the neurons of an MLP; its levels are widths of codes, ranks, or how many neurons stay. A database has, for each part and
each level, the bytes it takes and the loss it is expected to cost; dynamic programming over the bytes finds the choice with the least
sum (Frantar & Alistarh 2022, arXiv:2208.11580, section 5: there over layers and speeds).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from spq_core.errors import RecipeError

BUCKETS = 10_000
"""Steps that bytes are counted in; each part is counted with the bytes of its last, begun step."""


@dataclass(frozen=True, slots=True)
class Options:
    """What one part may become."""

    levels: tuple[int, ...]
    """Widths in bits, ranks (that of the whole matrix for one that stays), or numbers of neurons; more bytes for larger ones."""
    bytes: tuple[float, ...]
    """Stored, by level."""
    losses: tuple[float, ...]
    """Expected KL in nats per token, by level."""
    distances: tuple[float, ...] = ()
    """Squared distance from the weights in the Fisher metric, by level: the diagonal's part of the loss."""
    length: float = 0.0
    """Squared distance of the weights from zero in it."""


def choose_levels(
    options: Mapping[str, Options], wanted_bytes: float, fixed_bytes: float
) -> dict[str, int]:
    """A level for each part: least expected loss with at most `wanted_bytes` for all of them.

    Args:
        fixed_bytes: of everything else, in messages.

    Raises:
        RecipeError: with the least size that can be reached.
    """
    room = wanted_bytes - _least(options, wanted_bytes, fixed_bytes)
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
    place, levels = BUCKETS, {}
    for (name, one), (extra, picks) in reversed(list(zip(options.items(), chosen, strict=True))):
        pick = int(picks[place])
        levels[name] = one.levels[pick]
        place -= extra[pick]
    return dict(reversed(levels.items()))


def fit_path(
    options: Mapping[str, Options], wanted_bytes: float, fixed_bytes: float
) -> dict[str, int]:
    """A level for each part, by the shortest path from the source to the size (FITCompress, arXiv:2302.07612).

    All begin at their largest level. Each step lowers one of them to the next, the one of which g + h is least: g is the way so far, in
    the Fisher metric, and h = (bytes over what is wanted / bytes of all at their largest) · the model's own length in it. The open
    list has the best node only, as in the authors' code; the metric is that of the source all the way, where they measure it again. A
    step's length is taken from the distances of both levels to the source, as if their errors lay on one line.

    Raises:
        RecipeError: with the least size that can be reached.
    """
    _least(options, wanted_bytes, fixed_bytes)
    ordered = {
        name: sorted(range(len(one.levels)), key=one.levels.__getitem__, reverse=True)
        for name, one in options.items()
    }
    places = dict.fromkeys(options, 0)

    def now(name: str, further: int = 0) -> int:
        return ordered[name][places[name] + further]

    total = sum(one.bytes[now(name)] for name, one in options.items())
    whole, way = total, 0.0
    length = math.sqrt(sum(one.length for one in options.values()))
    while total > wanted_bytes:
        steps: list[tuple[float, float, float, str]] = []
        for name, one in options.items():
            if places[name] + 1 == len(ordered[name]):
                continue
            saved = one.bytes[now(name)] - one.bytes[now(name, 1)]
            step = math.sqrt(max(0.0, one.distances[now(name, 1)] - one.distances[now(name)]))
            left = max(0.0, total - saved - wanted_bytes) / whole * length
            steps.append((way + step + left, step, saved, name))
        _, step, saved, name = min(steps)
        places[name] += 1
        way, total = way + step, total - saved
    return {name: one.levels[now(name)] for name, one in options.items()}


def _least(options: Mapping[str, Options], wanted_bytes: float, fixed_bytes: float) -> float:
    """Bytes of all at their smallest levels.

    Raises:
        RecipeError: they are more than what is wanted.
    """
    least = sum(min(one.bytes) for one in options.values())
    if wanted_bytes < least:
        raise RecipeError(
            f"target asks for {round(wanted_bytes + fixed_bytes):,} bytes; with these levels "
            f"this model takes at least {round(least + fixed_bytes):,}"
        )
    return least

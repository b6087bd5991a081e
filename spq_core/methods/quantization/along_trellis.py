"""Choose codes along a trellis: what of it is the same for all columns of some rows."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from spq_core.formats.range_coded.spread import Spread
from spq_core.formats.range_coded.tables import PRECISION, tables
from spq_core.formats.range_coded.trellis import SEGMENT, bit_price, ways_in

ESCAPE_BITS = 9
LARGEST_CODE = 127


class Piece(NamedTuple):
    """Rows of one matrix."""

    start: int
    """In the stack."""
    stop: int
    spread: Spread
    """`rows` are those of the piece."""
    free: Bool[Tensor, " n_in"]
    """Columns that follow no trellis."""


class TrellisChooser:
    """Chooses the codes of a column for rows of several matrices."""

    def __init__(self, pieces: Sequence[Piece], states: int) -> None:
        """Make what all columns share.

        Args:
            pieces: one below the other, cut at multiples of `SEGMENT` rows of their matrices.
        """
        self._segments = [
            (at, min(at + SEGMENT, piece.stop), number, piece)
            for number, piece in enumerate(pieces)
            for at in range(piece.start, piece.stop, SEGMENT)
        ]
        self._free = [piece.free.tolist() for piece in pieces]
        self._ways = ways_in(states)
        self._price = _prices(states)

    def __call__(self, column: int, wanted: Float[Tensor, " rows"]) -> Float[Tensor, " rows"]:
        """Codes of a column of the matrices.

        Args:
            wanted: in steps.
        """
        values = wanted.cpu().numpy()
        codes = np.empty(len(values), np.int8)

        def choose(segment: tuple[int, int, int, Piece]) -> None:
            start, stop, number, piece = segment
            spread = piece.spread
            if self._free[number][column]:
                codes[start:stop] = np.rint(values[start:stop]).clip(-LARGEST_CODE, LARGEST_CODE)
                return
            centre = int(spread.centres[column])
            own = values[start:stop] if centre >= 0 else -values[start:stop]
            best = codes[start:stop]
            _kernels().best_codes(
                own, spread.rows[start - piece.start : stop - piece.start], int(spread.columns[column]),
                abs(centre), self._ways, tables().reach, self._price, best,
            )  # fmt: skip
            if centre < 0:
                np.negative(best, out=best)

        if len(self._segments) == 1 or torch.get_num_threads() == 1:
            for segment in self._segments:
                choose(segment)
        else:
            list(_pool(torch.get_num_threads()).map(choose, self._segments))
        return torch.from_numpy(codes).to(wanted)


@cache
def _prices(states: int) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    found = tables()
    bits = PRECISION - np.log2(np.maximum(found.shares, 1), dtype=np.float32)
    for own, reach in zip(bits, found.reach, strict=True):
        own[2 * reach + 1] += ESCAPE_BITS
    return (bits * bit_price(states)).astype(np.float32)


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads)


@cache
def _kernels() -> Any:
    """The compiled loop; compiling takes seconds, so only where it is used."""
    from spq_core.methods.quantization import viterbi  # noqa: PLC0415

    return viterbi

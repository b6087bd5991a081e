"""How far codes lie from zero, as the product of a number for their row and one for their column."""

from typing import NamedTuple

import numpy as np

from spq_core.formats.range_coded.tables import FIRST_OCTAVE, PER_OCTAVE

LARGEST_CENTRE = 64
TRELLIS_SPACING = 2
"""Steps between the values of each of the two quantizers."""

Floats = np.ndarray[tuple[int], np.dtype[np.float64]]
_Bytes = np.ndarray[tuple[int], np.dtype[np.uint8]]
_Ints = np.ndarray[tuple[int], np.dtype[np.int8]]


class Spread(NamedTuple):
    """What tables are chosen by."""

    rows: _Bytes
    """In quarters of an octave above the narrowest."""
    columns: _Ints
    """Sum of both: place of a table (see `tables`)."""
    centres: _Ints
    """What a column's values lie around, in spacings of its quantizer."""


def centres_of(means: Floats) -> _Ints:
    """Centres of columns whose values have these means, in spacings."""
    return np.clip(np.rint(means), -LARGEST_CENTRE, LARGEST_CENTRE).astype(np.int8)


def spread_of(row_squares: Floats, column_squares: Floats, centres: _Ints) -> Spread:
    """Put factors of mean squares, in squared spacings from the centre, on the grid of the tables."""
    by_row, by_column = (
        np.rint(PER_OCTAVE / 2 * np.log2(squares)) for squares in (row_squares, column_squares)
    )
    least = by_row.min()
    by_column += least - PER_OCTAVE * FIRST_OCTAVE
    return Spread(
        np.clip(by_row - least, 0, 255).astype(np.uint8),
        np.clip(by_column, -128, 127).astype(np.int8),
        centres,
    )

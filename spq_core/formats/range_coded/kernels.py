"""Loops over single codes, compiled; they let go of the interpreter's lock.

Asymmetric numeral systems (Duda 2013, arXiv:1311.2540), the range variant: a state x of 16 to 32 bits takes in a symbol whose
share of 2^12 is f and whose place is s as (x // f) · 2^12 + s + x % f, and puts out 16 bits when it would grow beyond. What is
written last is read first, so codes are written from the last to the first. Four states take turns: the processor works on
four columns at a time.
"""

from typing import Any

import numpy as np
from numba import njit

from spq_core.formats.range_coded.tables import (
    EVEN,
    KINDS,
    ODD,
    ODD_ASIDE,
    PRECISION,
    SPREADS,
    TOTAL,
)
from spq_core.formats.range_coded.trellis import SEGMENT

LANES = 4
"""Columns that are worked on side by side."""
LEAST = 1 << 16
WORD = 16
ESCAPE_BITS = 9
"""Of an index less the column's centre, plus 256."""
ESCAPE_HALF = 1 << (ESCAPE_BITS - 1)
ESCAPE_SHIFT = PRECISION - ESCAPE_BITS


Codes = np.ndarray[tuple[int, int], np.dtype[np.int8]]
Ints = np.ndarray[tuple[int], np.dtype[np.int64]]
Floats = np.ndarray[tuple[int], np.dtype[np.float64]]


@njit(nogil=True)
def _index(value: Any, second: bool, scalar: bool) -> Any:
    """The number of a value in its quantizer."""
    if scalar:
        return value
    if not second:
        return value >> 1
    if value > 0:
        return (value + 1) >> 1
    return -((1 - value) >> 1) if value < 0 else 0


@njit(nogil=True)
def _value(index: Any, second: bool, scalar: bool) -> Any:
    if scalar:
        return index
    if not second or index == 0:
        return 2 * index
    return 2 * index - 1 if index > 0 else 2 * index + 1


@njit(nogil=True)
def _table(row: Any, column: Any, centre: Any, second: bool) -> Any:
    spread = min(max(row + column, 0), SPREADS - 1)
    kind = EVEN
    if second:
        kind = ODD if centre == 0 else ODD_ASIDE
    return spread * KINDS + kind


@njit(nogil=True)
def find_free(codes: Codes, nexts: Any, free: Any) -> None:
    """Mark the columns, (columns, rows) int8, that do not follow the trellis."""
    for column in range(codes.shape[0]):
        state = np.int64(0)
        free[column] = len(nexts) == 1
        for row in range(codes.shape[1]):
            if row % SEGMENT == 0:
                state = np.int64(0)
            value = np.int64(codes[column, row])
            second = (state & 1) == 1
            if (value & 1) != (state & 1) and not (second and value == 0):
                free[column] = True
                break
            state = np.int64(nexts[state, _index(value, second, False) & 1])


@njit(nogil=True)
def fit_spread(
    codes: Codes, centres: Ints, spacings: Ints, least: float, rows: Floats, columns: Floats
) -> None:
    """Improve the product of a factor a row and one a column that stands for squares.

    Squares are of codes, (columns, rows) int8, in spacings from the column's centre.

    Args:
        least: of a factor. rows: is read and improved. columns: is written.
    """
    sums = np.zeros(len(rows))
    inverse = 1.0 / rows
    for column in range(codes.shape[0]):
        spacing = float(spacings[column])
        middle = centres[column] * spacing
        total = 0.0
        for row in range(codes.shape[1]):
            off = (codes[column, row] - middle) / spacing
            total += off * off * inverse[row]
        columns[column] = max(total / codes.shape[1], least)
        for row in range(codes.shape[1]):
            off = (codes[column, row] - middle) / spacing
            sums[row] += off * off / columns[column]
    for row in range(len(rows)):
        rows[row] = max(sums[row] / codes.shape[0], least)


@njit(nogil=True)
def encode_columns(
    codes: Codes,
    rows: Any,
    columns: Any,
    centres: Ints,
    free: Any,
    nexts: Any,
    reach: Ints,
    shares: Any,
    starts: Any,
) -> Any:
    """Write some columns.

    Args:
        codes: (columns, rows) int8. rows, columns: spreads of each in quarters of an octave; a table is
            that of their sum. centres: of each column, as indices; not negative. free: whether a column follows no trellis.
        nexts: the machine's transitions.
        reach, shares, starts: see `tables.Tables`.

    Returns:
        16-bit words.
    """
    n_columns, n_rows = codes.shape
    count = n_columns * n_rows
    share = np.empty(2 * count, np.uint16)
    start = np.empty(2 * count, np.uint16)
    lanes = np.empty(2 * count, np.uint8)
    states = np.zeros(LANES, np.int64)
    put = 0
    for first in range(0, n_columns, LANES):
        for row in range(n_rows):
            if row % SEGMENT == 0:
                states[:] = 0
            for lane in range(min(LANES, n_columns - first)):
                column = first + lane
                scalar = free[column]
                second = (states[lane] & 1) == 1
                index = _index(np.int64(codes[column, row]), second, scalar)
                table = _table(
                    np.int64(rows[row]), np.int64(columns[column]), centres[column], second
                )
                symbol = index - centres[column] + reach[table]
                escape = 2 * reach[table] + 1
                lanes[put] = lane
                if 0 <= symbol < escape:
                    share[put] = shares[table, symbol]
                    start[put] = starts[table, symbol]
                else:
                    share[put] = shares[table, escape]
                    start[put] = starts[table, escape]
                    put += 1
                    lanes[put] = lane
                    share[put] = 1 << ESCAPE_SHIFT
                    start[put] = (index - centres[column] + ESCAPE_HALF) << ESCAPE_SHIFT
                put += 1
                if not scalar:
                    states[lane] = nexts[states[lane], index & 1]
    words = np.empty(put + 2 * LANES, np.uint16)
    at = len(words)
    held = np.full(LANES, LEAST, np.int64)
    for place in range(put - 1, -1, -1):
        x, f = held[lanes[place]], np.int64(share[place])
        if x >= f << (2 * WORD - PRECISION):
            at -= 1
            words[at] = x & (LEAST - 1)
            x >>= WORD
        held[lanes[place]] = ((x // f) << PRECISION) + x % f + start[place]
    for lane in range(LANES - 1, -1, -1):
        at -= 2
        words[at], words[at + 1] = held[lane] >> WORD, held[lane] & (LEAST - 1)
    return words[at:].copy()


@njit(nogil=True)
def decode_columns(
    words: Any,
    rows: Any,
    columns: Any,
    centres: Ints,
    free: Any,
    nexts: Any,
    reach: Ints,
    slots: Any,
    codes: Codes,
) -> bool:
    """Read what `encode_columns` wrote into `codes`, (columns, rows) int8.

    Returns:
        whether the words are those of so many codes.
    """
    n_columns, n_rows = codes.shape
    states = np.zeros(LANES, np.int64)
    held = np.empty(LANES, np.int64)
    if len(words) < 2 * LANES:
        return False
    for lane in range(LANES):
        held[lane] = (np.int64(words[2 * lane]) << WORD) | np.int64(words[2 * lane + 1])
    at, end = 2 * LANES, len(words)
    for first in range(0, n_columns, LANES):
        for row in range(n_rows):
            if row % SEGMENT == 0:
                states[:] = 0
            spread = np.int64(rows[row])
            for lane in range(min(LANES, n_columns - first)):
                column = first + lane
                second = (states[lane] & 1) == 1
                table = _table(spread, np.int64(columns[column]), centres[column], second)
                x = held[lane]
                slot = np.int64(slots[table, x & (TOTAL - 1)])
                x = ((slot >> PRECISION) & (TOTAL - 1)) * (x >> PRECISION) + (slot & (TOTAL - 1))
                if x < LEAST:
                    if at == end:
                        return False
                    x = (x << WORD) | np.int64(words[at])
                    at += 1
                index = (slot >> (2 * PRECISION)) - reach[table]
                if index > reach[table]:
                    index = ((x & (TOTAL - 1)) >> ESCAPE_SHIFT) - ESCAPE_HALF
                    x = ((x >> PRECISION) << ESCAPE_SHIFT) + (x & ((1 << ESCAPE_SHIFT) - 1))
                    if x < LEAST:
                        if at == end:
                            return False
                        x = (x << WORD) | np.int64(words[at])
                        at += 1
                index += centres[column]
                held[lane] = x
                codes[column, row] = _value(index, second, free[column])
                if not free[column]:
                    states[lane] = nexts[states[lane], index & 1]
    return at == end

"""How often each index is expected, by the spread of its row and column: tables that a coder needs and no file holds.

Weights over the product of a number for their row and one for their column are nearly normal, so a table follows from one
number, their root mean square in spacings of the quantizer; there is one for each quarter of an octave. Measured on one layer of
SmolLM2-135M that costs 0.006 bits a code more than tables made of the codes themselves, which would take more than that to store.
"""

import hashlib
import math
from functools import cache
from typing import NamedTuple

import numpy as np

PRECISION = 12
"""Frequencies are shares of 2^12."""
TOTAL = 1 << PRECISION
PER_OCTAVE = 4
FIRST_OCTAVE = -4
SPREADS = 48
"""Root mean squares from 2^-4 on, a quarter of an octave apart."""
EVEN, ODD, ODD_ASIDE = range(3)
"""What a table is of: multiples of the spacing (the first quantizer, or a scalar one); the second quantizer of a column around
zero; and that of a column whose values lie around a positive one."""
KINDS = 3
WIDEST = 127
DEVIATIONS = 4.0
"""How far a table reaches; indices beyond are escaped."""
HALVINGS = 40
DIGEST = "b83d891d3104a793fef9d0ce56f4246519bdfdcd586e2d7c2b1db75de04d70a4"


class Tables(NamedTuple):
    """By table (`table_of`), and by symbol: 0 for the index that is `reach` below the column's centre; the last one escapes."""

    reach: np.ndarray[tuple[int], np.dtype[np.int64]]
    shares: np.ndarray[tuple[int, int], np.dtype[np.uint16]]
    """Of `TOTAL`; 0 behind the escape."""
    starts: np.ndarray[tuple[int, int], np.dtype[np.uint16]]
    """Sums of the shares before."""
    slots: np.ndarray[tuple[int, int], np.dtype[np.uint32]]
    """By place in the sum: symbol · 2^24 + share · 2^12 + place within the share."""


def table_of(spread: int, kind: int) -> int:
    """Where a table is."""
    return spread * KINDS + kind


@cache
def tables() -> Tables:
    """All tables.

    Raises:
        ArithmeticError: this machine's error function differs, so what is coded elsewhere could not be read.
    """
    count = SPREADS * KINDS
    reach = np.zeros(count, dtype=np.int64)
    shares = np.zeros((count, 2 * WIDEST + 2), dtype=np.uint16)
    for spread in range(SPREADS):
        deviation = _deviation(4.0 ** (FIRST_OCTAVE + spread / PER_OCTAVE))
        for kind in range(KINDS):
            found = _shares(deviation, kind)
            place = table_of(spread, kind)
            reach[place] = (len(found) - 2) // 2
            shares[place, : len(found)] = found
    if hashlib.sha256(shares.tobytes()).hexdigest() != DIGEST:
        raise ArithmeticError("erf of this machine's mathematics library is not that of others")
    starts = np.cumsum(shares, axis=1, dtype=np.uint16) - shares
    return Tables(reach, shares, starts, _slots(shares))


def _deviation(mean_square: float) -> float:
    """Of a normal distribution whose values, rounded to whole numbers, have this mean square."""
    low, high = 0.0, 2.0 + math.sqrt(mean_square)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        far = math.ceil(DEVIATIONS * middle) + 1
        found = sum(2 * index**2 * _expected(index, EVEN, middle) for index in range(1, far + 1))
        low, high = (middle, high) if found < mean_square else (low, middle)
    return high


def _shares(deviation: float, kind: int) -> list[int]:
    """Of the indices from -reach to reach, and of the escape: at least one each."""
    reach = min(WIDEST, math.ceil(DEVIATIONS * deviation) + 1)
    expected = [_expected(index, kind, deviation) for index in range(-reach, reach + 1)]

    def scaled(scale: float) -> list[int]:
        return [max(1, math.floor(scale * one + 0.5)) for one in expected]

    # What is rare takes more than its share, so the others take less; the largest makes up for what is left.
    low, high = 0.0, float(TOTAL)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(scaled(middle)) < TOTAL else (low, middle)
    found = scaled(low)
    found[expected.index(max(expected))] += TOTAL - 1 - sum(found)
    return [*found, 1]


def _expected(index: int, kind: int, deviation: float) -> float:
    """Probability of the cell of an index."""
    if kind == EVEN:
        low, high = index - 0.5, index + 0.5
    elif kind == ODD_ASIDE:
        low, high = index - 1.0, float(index)
    elif index == 0:
        low, high = -0.25, 0.25
    else:
        high = float(abs(index))
        low = max(high - 1.0, 0.25)
    scale = 1 / (deviation * math.sqrt(2))
    return 0.5 * (math.erf(high * scale) - math.erf(low * scale))


def _slots(
    shares: np.ndarray[tuple[int, int], np.dtype[np.uint16]],
) -> np.ndarray[tuple[int, int], np.dtype[np.uint32]]:
    symbols = np.arange(shares.shape[1], dtype=np.uint32)
    slots = np.empty((len(shares), TOTAL), dtype=np.uint32)
    for own, places in zip(shares.astype(np.uint32), slots, strict=True):
        within = np.concatenate([np.arange(share, dtype=np.uint32) for share in own])
        places[:] = np.repeat(symbols << 24 | own << PRECISION, own) + within
    return slots

"""Rows of a matrix that are worked on at once: they do not depend on each other when rounded."""

from collections.abc import Iterator

from torch import Tensor

WEIGHTS_AT_ONCE = 8 << 20
"""Rounding holds some six float32 copies of the rows it is at, 32 MiB each."""


def row_blocks(weight: Tensor) -> Iterator[slice]:
    """Cut the rows into blocks of equal height."""
    rows, columns = weight.shape
    height = max(1, WEIGHTS_AT_ONCE // columns)
    for start in range(0, rows, height):
        yield slice(start, min(start + height, rows))

"""Rows of matrices that are worked on at once: they do not depend on each other when rounded."""

from collections.abc import Iterator, Sequence

from torch import Tensor

WEIGHTS_AT_ONCE = 8 << 20
"""What is elementwise holds some six float32 copies of the rows it is at, 32 MiB each."""
STACKED_WEIGHTS = 64 << 20
"""Rounding with feedback holds one float32 copy of the rows it is at, and their codes: 320 MiB. Every
stack walks over the whole factor again, and over the columns one by one."""


def row_blocks(weight: Tensor) -> Iterator[slice]:
    """Cut the rows into blocks of equal height."""
    rows, columns = weight.shape
    height = max(1, WEIGHTS_AT_ONCE // columns)
    for start in range(0, rows, height):
        yield slice(start, min(start + height, rows))


def stacks(weights: Sequence[Tensor], multiple: int = 1) -> Iterator[list[tuple[int, slice]]]:
    """Put rows of matrices of one width on top of each other, as many as memory allows.

    Yields (index of the matrix, some of its rows) for the parts of each stack; in order, and every row once.

    Args:
        multiple: of rows, at which a matrix may be cut.
    """
    height = max(1, STACKED_WEIGHTS // (weights[0].shape[1] * multiple)) * multiple
    stack: list[tuple[int, slice]] = []
    room = height
    for index, weight in enumerate(weights):
        start = 0
        while start < len(weight):
            stop = (
                len(weight) if len(weight) - start <= room else start + room // multiple * multiple
            )
            if stop == start:
                yield stack
                stack, room = [], height
                continue
            stack.append((index, slice(start, stop)))
            room -= stop - start
            start = stop
            if not room:
                yield stack
                stack, room = [], height
    if stack:
        yield stack

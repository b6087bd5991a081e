"""The largest number at which something still holds. Free of torch."""

from collections.abc import Callable

STEPS = 80
"""Each halves what is left of a range: more than a float can tell apart."""


def largest(holds: Callable[[float], bool], low: float, high: float) -> float:
    """The largest number of a range at which `holds` is true; `low` is taken to be one.

    Args:
        holds: true up to some number, and not beyond it.
    """
    for _ in range(STEPS):
        middle = (low + high) / 2
        if holds(middle):
            low = middle
        else:
            high = middle
    return low

"""Figures that are expected from measured ones, with how far off they may be."""

from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True, slots=True)
class Range:
    """An expectation, and where the figure lies if the model is unlike those it was measured on."""

    low: float
    expected: float
    high: float

    def plus(self, other: "Range") -> "Range":
        """The range of a sum."""
        return Range(self.low + other.low, self.expected + other.expected, self.high + other.high)

    def product(self, other: "Range") -> "Range":
        """The range of a product of figures that are not negative."""
        return Range(self.low * other.low, self.expected * other.expected, self.high * other.high)

    def times(self, factor: float) -> "Range":
        """The range of a multiple."""
        return Range(self.low * factor, self.expected * factor, self.high * factor)


def exactly(value: float) -> Range:
    """A figure without doubt."""
    return Range(value, value, value)


def between(points: tuple[tuple[float, float], ...], at: float) -> float:
    """Linear between points in rising order, constant outside."""
    if at <= points[0][0]:
        return points[0][1]
    for (left, low), (right, high) in pairwise(points):
        if at <= right:
            return low + (high - low) * (at - left) / (right - left)
    return points[-1][1]

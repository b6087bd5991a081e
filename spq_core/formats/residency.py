"""How much of a model stays coded in memory: chosen before it is loaded, from bytes or from measured speeds.

A matrix that stays coded takes its stored bytes, and is decoded each time it is used. On processors the same cores decode and
compute, so a pass takes as long as both together.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import NamedTuple

_FRACTION: ContextVar[float] = ContextVar("fraction kept coded", default=0.0)


@contextmanager
def kept_coded(fraction: float) -> Iterator[None]:
    """Within, models are loaded with this share of the decoder layers' coded bytes kept coded.

    Raises:
        ValueError: the share is not between 0 and 1.
    """
    if not 0.0 <= fraction <= 1.0:
        raise ValueError(f"the share kept coded is between 0 and 1, not {fraction:g}")
    token = _FRACTION.set(fraction)
    try:
        yield
    finally:
        _FRACTION.reset(token)


def fraction_asked_for() -> float:
    """That of the innermost `kept_coded`; 0 outside."""
    return _FRACTION.get()


def spread_over(sizes: Mapping[str, int], fraction: float) -> frozenset[str]:
    """Names that take a share of all bytes, evenly spread over their order: so that what is decoded ahead never piles up.

    At least the share, by less than one of them.
    """
    whole, taken, passed = sum(sizes.values()), 0, 0
    chosen: list[str] = []
    for name, size in sizes.items():
        passed += size
        if taken < fraction * passed - 1e-9 * whole:
            chosen.append(name)
            taken += size
    return frozenset(chosen)


@dataclass(frozen=True, slots=True)
class Speeds:
    """Of one machine, for one model."""

    compute_seconds: float
    """A pass with everything decoded."""
    decode_seconds: float
    """Decoding everything that can stay coded, once, with all threads."""

    def seconds(self, fraction: float) -> float:
        """Expected of a pass."""
        return self.compute_seconds + fraction * self.decode_seconds

    def fraction_within(self, max_slowdown: float) -> float:
        """The largest share that makes a pass at most so many times as long.

        Raises:
            ValueError: less than 1 is asked for.
        """
        if max_slowdown < 1.0:
            raise ValueError(f"max_slowdown is at least 1, not {max_slowdown:g}")
        return min(1.0, (max_slowdown - 1.0) * self.compute_seconds / self.decode_seconds)


class Held(NamedTuple):
    """Bytes of a matrix in memory, both ways."""

    coded: int
    decoded: int


def fraction_within_bytes(
    resident_bytes: float, layers: Mapping[str, Held], other_bytes: float, room_bytes: float = 0.0
) -> float:
    """The least share that keeps a model within so many bytes of memory.

    Args:
        layers: all that can stay coded. other_bytes: of the rest. room_bytes: of what is decoded for the moment, where something is.

    Raises:
        ValueError: even all of it coded is more; with the least that can be reached.
    """
    sizes = {name: one.coded for name, one in layers.items()}
    for count in range(len(layers) + 1):
        stay = spread_over(sizes, count / len(layers))
        held = sum(one.coded if name in stay else one.decoded for name, one in layers.items())
        if held + other_bytes + (room_bytes if stay else 0.0) <= resident_bytes:
            return count / len(layers)
    least = round(other_bytes + room_bytes + sum(sizes.values()))
    raise ValueError(
        f"{round(resident_bytes):,} bytes of memory are too few: all coded it takes {least:,}"
    )

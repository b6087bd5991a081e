"""What a member's run found, as sweeps keep it. Free of torch."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class Compared(NamedTuple):
    """Of one run."""

    row: dict[str, Any]
    """Figures of the member's artifact; `bytes_ratio` is its share of the source's bytes."""
    beside: dict[str, dict[str, Any]]
    """By name, those of the other models that were measured: the source, and plain INT8 unless it is the member itself."""


def compared(rows: Sequence[Mapping[str, Any]]) -> Compared:
    """A run's rows: the source first, the result last.

    Args:
        rows: as a result's document has them.
    """
    size = rows[0]["bytes_on_disk"]
    shared = [dict(row) | {"bytes_ratio": row["bytes_on_disk"] / size} for row in rows]
    return Compared(shared[-1], {row["name"]: row for row in shared[:-1]})

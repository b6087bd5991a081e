"""Which matrices get one scale per row, and which one scale in all (arXiv:2602.18420)."""

from collections.abc import Mapping, Sequence

from spq_core.methods.quantization.settings import ScaleMode

PER_CHANNEL_MIN_ELEMENTS = 1_000_000
PER_CHANNEL_MIN_ROWS = 1024
MEANSTD_WEIGHT = 0.5


def per_channel_names(
    mode: ScaleMode,
    shapes: Mapping[str, tuple[int, int]],
    *,
    mlp: Sequence[str],
    single_scale: Sequence[str],
) -> frozenset[str]:
    """Return the names of the matrices that get one scale per output row.

    Args:
        shapes: (out, in) of every linear layer of the model, low-rank factors counted one by one.
        mlp: dotted suffixes of MLP matrices; `mix_name` scales these per row.
        single_scale: dotted suffixes of attention projections and the head; `mix_name` gives
            these, and the factors made of them, one scale.
    """
    match mode:
        case ScaleMode.TENSOR:
            return frozenset()
        case ScaleMode.CHANNEL:
            return frozenset(shapes)
        case ScaleMode.MIX_NAME:
            return frozenset(
                name for name, shape in shapes.items() if _by_name(name, shape, mlp, single_scale)
            )
        case ScaleMode.MIX_PERCENTILE | ScaleMode.MIX_MEANSTD:
            cutoff = row_cutoff(mode, [rows for rows, _ in shapes.values()])
            return frozenset(name for name, (rows, _) in shapes.items() if rows >= cutoff)


def row_cutoff(mode: ScaleMode, rows: Sequence[int]) -> float:
    """Row count from which a matrix is scaled per row: the median, or mean + ½ standard deviation."""
    if mode == ScaleMode.MIX_PERCENTILE:
        ordered = sorted(rows)
        middle = (len(ordered) - 1) / 2
        return (ordered[int(middle)] + ordered[int(middle + 0.5)]) / 2
    mean = sum(rows) / len(rows)
    variance = sum((count - mean) ** 2 for count in rows) / len(rows)
    return float(mean + MEANSTD_WEIGHT * variance**0.5)


def _by_name(
    name: str, shape: tuple[int, int], mlp: Sequence[str], single_scale: Sequence[str]
) -> bool:
    dotted = f".{name}."
    if any(f".{suffix}." in dotted for suffix in mlp):
        return True
    if any(f".{suffix}." in dotted for suffix in single_scale):
        return False
    return shape[0] * shape[1] > PER_CHANNEL_MIN_ELEMENTS or shape[0] >= PER_CHANNEL_MIN_ROWS

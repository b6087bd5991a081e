"""Models side by side as a picture: what they cost against what they lost. Needs matplotlib."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spq_core.evaluation.drawing import LEAST_KL, require_drawable
from spq_core.evaluation.summary import Row


def write_figure(rows: Sequence[Row], file: Path) -> None:
    """Draw perplexity and KL against bytes on disk, and decoding speed if it was measured."""
    require_drawable(file)
    from matplotlib import pyplot as plt  # noqa: PLC0415

    timed = [row for row in rows if row.decode_tokens_per_second is not None]
    figure, axes = plt.subplots(1, 3 if timed else 2, figsize=(15 if timed else 10, 4.2))
    try:
        _scatter(axes[0], rows, [row.perplexity for row in rows], f"perplexity, {rows[0].dataset}")
        compared = [row for row in rows if row.quality["kl"] is not None]
        _scatter(
            axes[1], compared, [max(row.quality["kl"] or 0.0, LEAST_KL) for row in compared],
            f"KL from {rows[0].name}, nats per token",
        )  # fmt: skip
        if compared:
            axes[1].set_yscale("log")
        if timed:
            speeds = [row.decode_tokens_per_second or 0.0 for row in timed]
            axes[2].barh([row.name for row in timed], speeds)
            axes[2].invert_yaxis()
            axes[2].set_xlabel("decoding, tokens per second")
        figure.tight_layout()
        figure.savefig(file, dpi=120)
    finally:
        plt.close(figure)


def _scatter(axis: Any, rows: Sequence[Row], values: Sequence[float], label: str) -> None:
    megabytes = [row.bytes_on_disk / 1e6 for row in rows]
    axis.scatter(megabytes, values)
    for row, x, y in zip(rows, megabytes, values, strict=True):
        axis.annotate(row.name, (x, y), fontsize=7, xytext=(4, 4), textcoords="offset points")
    axis.set(xlabel="MB on disk", ylabel=label)
    axis.set_xlim(left=0)

"""A sweep as a picture: its members by two figures, and which of them no other beats. Needs matplotlib."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spq_core.evaluation.drawing import LEAST_KL, require_drawable
from spq_core.sweep.tables import SUCCEEDED

TITLES = {
    "bytes_on_disk": "MB on disk", "resident_bytes": "MB in memory", "kl": "KL from the source, nats per token",
    "bytes_ratio": "share of the source's bytes",
}  # fmt: skip
IN_MEGABYTES = frozenset({"bytes_on_disk", "resident_bytes"})


def draw_sweep(document: Mapping[str, Any], file: Path) -> None:
    """Draw the members that are done by the first two figures of the front.

    Args:
        document: a sweep's, see `sweep.tables`.

    Raises:
        EvaluationError: matplotlib is missing, or the file's kind is none it writes.
    """
    require_drawable(file)
    from matplotlib import pyplot as plt  # noqa: PLC0415 - an extra of the package

    figure, axis = plt.subplots(figsize=(6.4, 4.4))
    try:
        draw_front(axis, document)
        figure.tight_layout()
        figure.savefig(file, dpi=120)
    finally:
        plt.close(figure)


def draw_front(axis: Any, document: Mapping[str, Any]) -> None:
    """Draw into given axes: members with their errors, filled if they are on the front, and a step line through it."""
    names = document["sweep"]["front"][:2]
    steps = []
    for one in document["members"]:
        row = one.get("row") or {}
        known = [row[name] for name in names if row.get(name) is not None]
        if one["status"] != SUCCEEDED or len(known) < len(names):
            continue
        x, y = (_value(name, value) for name, value in zip(names, known, strict=True))
        on_front = one["number"] in document["front"]
        axis.errorbar(
            x, y, yerr=row.get(f"{names[1]}_se"), fmt="o", color="C0",
            markerfacecolor="C0" if on_front else "white",
        )  # fmt: skip
        fields = [str(value) for field, value in one["fields"].items() if field != "recipe"]
        axis.annotate(
            ", ".join(fields) or one["fields"]["recipe"], (x, y), fontsize=7, xytext=(4, 4),
            textcoords="offset points",
        )  # fmt: skip
        steps += [(x, y)] if on_front else []
    if steps:
        axis.step(
            *zip(*sorted(steps), strict=True), where="post", color="C0", linewidth=0.8, alpha=0.5
        )
    title = document["sweep"]["name"]
    axis.set(
        title=title, xlabel=TITLES.get(names[0], names[0]), ylabel=TITLES.get(names[1], names[1])
    )
    if names[1] == "kl":
        axis.set_yscale("log")
    axis.set_xlim(left=0)


def _value(name: str, value: float) -> float:
    if name in IN_MEGABYTES:
        return value / 1e6
    return max(value, LEAST_KL) if name == "kl" else value

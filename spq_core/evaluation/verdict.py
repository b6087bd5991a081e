"""Whether a result is worth it beside plain INT8, which costs nothing to make. Free of torch."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from spq_core.evaluation.certainty import shown, student_t

Word = Literal["better", "worse", "mixed", "same", "unclear"]
SAME_BYTES = 0.001
"""Sizes that differ by less are one size: a tokenizer file, a longer card."""


class Verdict(NamedTuple):
    """One result beside plain INT8."""

    word: Word
    sentence: str

    def document(self) -> dict[str, str]:
        """As plain JSON values."""
        return self._asdict()


def verdict(rows: Sequence[Mapping[str, Any]]) -> Verdict | None:
    """Compare the result with plain INT8 by bytes on disk and by KL from the source.

    A difference in KL counts where it is more than the errors of both, added in squares, allow at 95%. Where they allow more than
    the smaller KL itself, nothing is said: a result that is twice as far would pass for equal.

    Args:
        rows: of one run, as its result has them: the source first, the result last.

    Returns:
        None where plain INT8 was not measured, or is the result, or where one window cannot tell them apart.
    """
    known = {row["name"]: row for row in rows}
    if not rows or "int8" not in known or rows[-1]["name"] == "int8":
        return None
    source, int8, result = rows[0], known["int8"], rows[-1]
    if result.get("kl") is None or int8.get("kl") is None:
        return None
    margin = _margin(result, int8)
    if margin is None:
        return None
    size = _direction(result["bytes_on_disk"] / int8["bytes_on_disk"] - 1, SAME_BYTES)
    distance = _direction(result["kl"] - int8["kl"], margin)
    sentence = _sentence(source, int8, result, size, distance)
    if distance == 0 and margin > min(result["kl"], int8["kl"]):
        return Verdict("unclear", f"{sentence} So little text would not show twice the KL.")
    return Verdict(_word(size, distance), sentence)


def _direction(difference: float, margin: float) -> int:
    """-1, 0 or 1: below, the same, above."""
    return 0 if abs(difference) <= margin else int(math.copysign(1, difference))


def _margin(one: Mapping[str, Any], other: Mapping[str, Any]) -> float | None:
    """What a difference must exceed; None where no error is known."""
    errors = [row.get("kl_se") for row in (one, other)]
    windows = min(int(row.get("windows") or 0) for row in (one, other))
    if None in errors or windows < 2:  # noqa: PLR2004 - one window has no error
        return None
    return student_t(windows - 1) * math.hypot(*(float(error or 0.0) for error in errors))


def _word(size: int, distance: int) -> Word:
    if size == distance == 0:
        return "same"
    if size <= 0 and distance <= 0:
        return "better"
    return "worse" if size >= 0 and distance >= 0 else "mixed"


def _sentence(
    source: Mapping[str, Any],
    int8: Mapping[str, Any],
    result: Mapping[str, Any],
    size: int,
    distance: int,
) -> str:
    def told(row: Mapping[str, Any]) -> str:
        error = row.get("kl_se")
        kl = shown(row["kl"], ".4f") + (f" ± {shown(error, '.4f')}" if error else "")
        return (
            f"{row['bytes_on_disk'] / source['bytes_on_disk']:.1%} of the source's bytes, KL {kl}"
        )

    sizes = {
        -1: "smaller than plain INT8",
        0: "as large as plain INT8",
        1: "larger than plain INT8",
    }
    distances = {
        -1: "nearer to the source",
        0: "no difference in KL shown",
        1: "farther from the source",
    }
    return f"{told(result)}; plain INT8: {told(int8)}. It is {sizes[size]}; {distances[distance]}."


def headline(result: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of a job's result that lists are sorted by; None where they were not measured."""
    rows = result.get("rows") or []
    if not rows:
        compression = result.get("compression") or {}
        return {
            "bytes_ratio": compression.get("ratio_to_source"),
            "kl": None,
            "perplexity_ratio": None,
        }
    row = rows[-1]
    return {
        "bytes_ratio": row["bytes_on_disk"] / rows[0]["bytes_on_disk"],
        "kl": row.get("kl"),
        "perplexity_ratio": row.get("perplexity_ratio"),
    }

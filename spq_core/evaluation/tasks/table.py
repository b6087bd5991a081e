"""Tasks in a table people read. Free of torch."""

from collections.abc import Mapping, Sequence
from typing import Any

from spq_core.evaluation.certainty import student_t

HEADLINES = ("acc_norm", "acc", "exact_match_flexible-extract", "exact_match")
FEW_QUESTIONS = 100
"""Below, a score is off by ten points as often as not."""


def headline(figures: Mapping[str, Any]) -> str:
    """The figure of a task that tables show."""
    return next((name for name in HEADLINES if name in figures), next(iter(figures)))


def tasks_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A row a task, a column a model: scores ± standard errors, the paired difference to the source, flips. Empty without tasks."""
    measured = [row for row in rows if row.get("tasks")]
    if not measured:
        return ""
    titles = ["task", "questions", "guessing", *(row["name"] for row in measured)]
    lines = [f"| {' | '.join(titles)} |", f"|{'---|' * len(titles)}"]
    for task in measured[0]["tasks"]:
        figures = measured[0]["tasks"][task]
        name, chance = headline(figures), figures.get("chance")
        cells = [f"{task} ({name})", f"{figures['questions']:.0f}"]
        cells.append("–" if chance is None else f"{chance:.1%}")
        cells += [_cell(row["tasks"][task], name) for row in measured]
        lines.append(f"| {' | '.join(cells)} |")
    kept = [row.get("retention") for row in measured]
    if any(value is not None for value in kept):
        shown = ["–" if value is None else f"{value:.1%}" for value in kept]
        lines.append(f"| {' | '.join(['retention', '', '', *shown])} |")
    least = min(figures["questions"] for figures in measured[0]["tasks"].values())
    words = f"\n\n**A try, not a result: {least:.0f} questions of a task.**"
    return "\n".join(lines) + (words if least < FEW_QUESTIONS else "")


def _cell(figures: Mapping[str, Any], name: str) -> str:
    value, error = figures[name], figures.get(f"{name}_se")
    if value is None:
        return "not a number"
    shown = f"{value:.1%}" if error is None else f"{value:.1%} ± {error:.1%}"
    change, spread = figures.get(f"{name}_change"), figures.get(f"{name}_change_se")
    if change is None or spread is None:
        return shown
    margin = student_t(max(1, int(figures["questions"]) - 1)) * spread
    words = "worse" if change < -margin else "better" if change > margin else "no difference shown"
    flips = figures[f"{name}_flips"]
    return f"{shown} ({change:+.1%} ± {spread:.1%}, {words}; {flips:.1%} flipped)"

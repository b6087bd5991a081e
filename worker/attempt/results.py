"""From a run's document to database rows."""

from typing import Any

from app.db.attempts import FinishedFile
from worker.children.messages import Files, Progressed

RUN_FIGURES = ("seconds", "peak_rss_bytes", "ratio_to_source", "ratio_to_fp32", "theoretical_rate")
LONGEST_TEXT = 200
UNMEASURED = frozenset({"name", "dataset", "tasks", "origin"})


def layer_rows(document: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per stage and matrix; none when the run never got that far."""
    return list(document.get("compression", {}).get("modules", []))


def metric_rows(document: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per model and figure: the summary, every other dataset's figures, and the run's own cost."""
    if not document:
        return []
    compression = document["compression"]
    known = {name: compression.get(name) for name in RUN_FIGURES}
    rows = [
        _row("result", f"compression_{name}", "", value)
        for name, value in known.items()
        if value is not None
    ]
    if document["evaluation"] is None:
        return rows
    rows += [
        _row(row["name"], name, row["dataset"], value)
        for row in document["rows"]
        for name, value in row.items()
        if name not in UNMEASURED and value is not None
    ]
    rows += [
        _row(row["name"], f"{task}.{name}", task, value)
        for row in document["rows"]
        for task, figures in row.get("tasks", {}).items()
        for name, value in figures.items()
        if value is not None
    ]
    first = document["rows"][0]["dataset"]
    for model, figures in document["evaluation"]["models"].items():
        for dataset, quality in figures["quality"].items():
            if dataset != first:
                rows += [
                    _row(model, f"{name}.{dataset}", dataset, value)
                    for name, value in quality.items()
                    if value is not None
                ]
    return rows


def _row(model: str, name: str, dataset: str, value: float) -> dict[str, Any]:
    return {"model": model, "name": name, "dataset": dataset, "value": float(value)}


def job_result(document: dict[str, Any], published: dict[str, Any] | None) -> dict[str, Any]:
    """What the job shows of a run; its matrices have a table of their own."""
    compression = document["compression"]
    return {
        "rows": document["rows"],
        "beaten_by_int8": document["beaten_by_int8"],
        "gates": document.get("gates", []),
        "texts": figures_by_text(document),
        "compression": {key: value for key, value in compression.items() if key != "modules"},
        "evaluation": document["evaluation"] and document["evaluation"]["settings"],
        "missing": document["missing"],
        "load_check": document["load_check"],
        "estimate": document["estimate"],
        "measured": document["measured"],
        "published": published,
    }


def figures_by_text(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """By evaluation text and model, every figure of quality."""
    found: dict[str, dict[str, Any]] = {}
    for model, figures in (document["evaluation"] or {"models": {}})["models"].items():
        for text, quality in figures["quality"].items():
            found.setdefault(text, {})[model] = quality
    return found


def finished_files(files: Files) -> list[FinishedFile]:
    """The rows of an artifact's files."""
    return [
        FinishedFile(path=name, bytes=entry.bytes, sha256=entry.sha256)
        for name, entry in files.items()
    ]


def shown_progress(told: Progressed) -> dict[str, Any]:
    """Where a run is, as clients see it."""
    return {
        "done": told.done,
        "total": told.total,
        "stage": told.phase.title[:LONGEST_TEXT],
        "unit": told.unit[:LONGEST_TEXT],
        "message": told.message[:LONGEST_TEXT],
        "fraction": round(min(1.0, told.done / max(1, told.total)), 4),
    }

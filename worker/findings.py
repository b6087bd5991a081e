"""From a run's document to database rows."""

from typing import Any

RUN_FIGURES = ("seconds", "peak_rss_bytes", "ratio_to_source", "ratio_to_fp32")
UNMEASURED = frozenset({"name", "dataset"})


def layer_rows(document: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per stage and matrix; none when the run never got that far."""
    return list(document.get("compression", {}).get("modules", []))


def metric_rows(document: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per model and figure: the summary, every dataset's perplexity, and the run's own cost."""
    if not document:
        return []
    rows = [
        _row(row["name"], name, row["dataset"], value)
        for row in document["rows"]
        for name, value in row.items()
        if name not in UNMEASURED and value is not None
    ]
    first = document["rows"][0]["dataset"]
    for model, figures in document["evaluation"]["models"].items():
        for dataset, quality in figures["quality"].items():
            if dataset != first:
                rows.append(_row(model, f"perplexity.{dataset}", dataset, quality["perplexity"]))
    compression = document["compression"]
    rows += [_row("result", f"compression_{name}", "", compression[name]) for name in RUN_FIGURES]
    return rows


def _row(model: str, name: str, dataset: str, value: float) -> dict[str, Any]:
    return {"model": model, "name": name, "dataset": dataset, "value": float(value)}

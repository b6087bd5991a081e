"""The table people read: one row a model."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from spq_core.evaluation.measure import Measurement
from spq_core.evaluation.quality import Quality
from spq_core.evaluation.tasks.answers import retention
from spq_core.evaluation.tasks.table import headline


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Headline figures of one model."""

    name: str
    bytes_on_disk: int
    resident_bytes: int | None
    dataset: str
    quality: Quality
    ppl_paper: float | None
    prefill_tokens_per_second: float | None
    decode_tokens_per_second: float | None
    tasks: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    """Figures by task."""
    origin: Mapping[str, Any] | None = None
    """When, and for whom, figures were measured that were known before; None where all are new."""

    @property
    def retention(self) -> float | None:
        """What is left of what the source could do; see `tasks.answers`. None without tasks or for the source itself."""
        names = {task: headline(figures) for task, figures in self.tasks.items()}
        scores, source, chances = {}, {}, {}
        for task, name in names.items():
            figures = self.tasks[task]
            score, change = figures[name], figures.get(f"{name}_change")
            if score is None or change is None:
                return None
            scores[task], source[task], chances[task] = (
                score,
                score - change,
                figures["chance"] or 0.0,
            )
        return retention(scores, source, chances)

    @property
    def perplexity(self) -> float:
        """On the row's text."""
        return self.quality["perplexity"] or 0.0

    def document(self) -> dict[str, Any]:
        """As one level of JSON values."""
        return {
            "name": self.name,
            "bytes_on_disk": self.bytes_on_disk,
            "resident_bytes": self.resident_bytes,
            "dataset": self.dataset,
            **self.quality,
            "ppl_paper": self.ppl_paper,
            "prefill_tokens_per_second": self.prefill_tokens_per_second,
            "decode_tokens_per_second": self.decode_tokens_per_second,
            **({"origin": dict(self.origin)} if self.origin else {}),
            **({"tasks": dict(self.tasks), "retention": self.retention} if self.tasks else {}),
        }


def summary_rows(measurement: Measurement) -> tuple[Row, ...]:
    """One row per model, figures of the first dataset."""
    rows = []
    for name, figures in measurement.models.items():
        dataset, quality = next(iter(figures.quality.items()))
        speed = figures.throughput
        rows.append(
            Row(
                name=name,
                bytes_on_disk=figures.load.bytes_on_disk,
                resident_bytes=figures.load.resident_bytes,
                dataset=dataset,
                quality=quality,
                ppl_paper=figures.ppl_paper,
                prefill_tokens_per_second=speed.prefill.median if speed else None,
                decode_tokens_per_second=speed.decode.median if speed else None,
                tasks=figures.tasks,
                origin=measurement.settings.get("reused", {}).get(name),
            )
        )
    return tuple(rows)


def beaten_by(rows: tuple[Row, ...], ours: str, other: str) -> bool:
    """Whether `other` is at most as large and at least as good as `ours`; False if either is absent."""
    by_name = {row.name: row for row in rows}
    if ours not in by_name or other not in by_name:
        return False
    mine, theirs = by_name[ours], by_name[other]
    return theirs.bytes_on_disk <= mine.bytes_on_disk and theirs.perplexity <= mine.perplexity

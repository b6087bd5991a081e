"""The table people read: one row a model."""

from dataclasses import dataclass
from typing import Any

from spq_core.evaluation.measure import Measurement
from spq_core.evaluation.quality import Quality


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Headline figures of one model."""

    name: str
    bytes_on_disk: int
    resident_bytes: int
    dataset: str
    quality: Quality
    ppl_paper: float | None
    prefill_tokens_per_second: float | None
    decode_tokens_per_second: float | None

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

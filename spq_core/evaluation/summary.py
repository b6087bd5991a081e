"""The table people read: one row a model."""

from dataclasses import dataclass

from spq_core.evaluation.measure import Measurement


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Headline figures of one model."""

    name: str
    bytes_on_disk: int
    resident_bytes: int
    dataset: str
    perplexity: float
    tokens: int
    ppl_paper: float | None
    kl: float | None
    top1: float | None
    prefill_tokens_per_second: float | None
    decode_tokens_per_second: float | None


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
                perplexity=quality.perplexity,
                tokens=quality.tokens,
                ppl_paper=figures.ppl_paper,
                kl=quality.kl,
                top1=quality.top1,
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

"""The metrics there are, in the order of tables: one line each. Free of torch."""

from typing import NamedTuple


class Metric(NamedTuple):
    """A figure of a model on a text."""

    name: str
    """In results."""
    title: str
    """In tables."""
    form: str
    """How tables write it, as `format` takes it."""
    module: str
    """Whose `Tally` sums it up; imported when something is measured, so that results can be read without torch."""


METRICS = (
    Metric("perplexity", "perplexity", ".3f", "spq_core.evaluation.metrics.perplexity"),
    Metric("kl", "KL", ".4f", "spq_core.evaluation.metrics.kl"),
    Metric("top1", "top-1", ".1%", "spq_core.evaluation.metrics.top1"),
)

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
    """Whose `Rule` says how it is measured; imported when something is, so that results can be read without torch."""
    more: tuple[str, ...] = ()
    """Names of what is reported beside it and its standard error (`<name>_se`): quantiles, a ratio."""


_METRICS = "spq_core.evaluation.metrics"
METRICS = (
    Metric(
        "perplexity",
        "perplexity",
        ".3f",
        f"{_METRICS}.perplexity",
        ("perplexity_ratio", "perplexity_ratio_se"),
    ),
    Metric("bits_per_byte", "bits/byte", ".4f", f"{_METRICS}.bits_per_byte"),
    Metric("kl", "KL", ".4f", f"{_METRICS}.kl", ("kl_p50", "kl_p90", "kl_p99", "kl_p99.9")),
    Metric("top1", "top-1", ".1%", f"{_METRICS}.top1"),
)


def figure_names() -> frozenset[str]:
    """Everything that is reported of a model on a text."""
    return frozenset(
        name for metric in METRICS for name in (metric.name, f"{metric.name}_se", *metric.more)
    )

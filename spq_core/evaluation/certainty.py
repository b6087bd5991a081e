"""What so much text can show: intervals, and differences in words. Free of torch."""

from collections.abc import Mapping
from statistics import NormalDist
from typing import Any

LEVEL = 0.95
"""Of confidence."""
LEAST_WINDOWS, LEAST_TOKENS = 8, 5_000
"""Below either, figures are a try: a few paragraphs of text are no sample of a language."""
EXACT = {1: 12.706, 2: 4.303}
"""Student's t where the expansion is far off."""


def student_t(freedom: int) -> float:
    """The two-sided 95% quantile of Student's t (Cornish-Fisher expansion; error below 1% from 3 degrees on)."""
    if freedom in EXACT:
        return EXACT[freedom]
    z: float = NormalDist().inv_cdf((1 + LEVEL) / 2)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    rest: float = sum(term / freedom ** (power + 1) for power, term in enumerate(terms))
    return z + rest


def compared_with_source(row: Mapping[str, Any]) -> str | None:
    """A model's perplexity against the source's on the same windows, in words; None for the source itself."""
    ratio, error, windows = (
        row.get("perplexity_ratio"), row.get("perplexity_ratio_se"), row.get("windows"),
    )  # fmt: skip
    if ratio is None:
        return None
    change = f"{ratio - 1:+.2%}"
    if error is None or windows is None:
        return f"{change}, too little text to tell"
    margin = student_t(int(windows) - 1) * error
    words = (
        "worse" if ratio - 1 > margin else "better" if 1 - ratio > margin else "no difference shown"
    )
    return f"{change} ± {error:.2%}, {words}"


def warning(row: Mapping[str, Any]) -> str | None:
    """What to say of figures that are no result; None where there is text enough."""
    windows, tokens = row.get("windows"), row.get("tokens")
    if windows is None or tokens is None:  # measured before these were noted
        return None
    if windows >= LEAST_WINDOWS and tokens >= LEAST_TOKENS:
        return None
    return (
        f"A try, not a result: {tokens:,} predicted tokens in {windows} windows. Measure on "
        f"{LEAST_TOKENS:,} tokens and {LEAST_WINDOWS} windows at least (`limit`, `length`) before you compare models."
    )


SMALL = 1e-3


def shown(value: float, form: str) -> str:
    """A figure in a form as `format` takes it; below `SMALL`, with two digits that count."""
    return format(value, ".2g" if 0 < abs(value) < SMALL and form.endswith("f") else form)

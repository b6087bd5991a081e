"""Metrics of models on the same windows, one window of all models at a time."""

import math
from collections.abc import Callable, Mapping
from importlib import import_module

import torch
from jaxtyping import Int64
from torch import Tensor

from spq_core.errors import EvaluationError, NumericalError
from spq_core.evaluation.gguf import LanguageModel
from spq_core.evaluation.metrics.metric import Positions
from spq_core.evaluation.metrics.registry import METRICS
from spq_core.evaluation.metrics.sums import Sums

POSITIONS_AT_ONCE = 256
"""Positions per softmax, so that a large vocabulary does not double the memory for logits."""
Quality = dict[str, float | None]
"""Metrics by name with their standard errors (`<name>_se`), and `windows` and `tokens`: predicted ones, n − 1 for each
window of n. None where a metric compares with the reference, for the reference itself or without one, and where too few
windows tell a standard error."""


@torch.no_grad()
def score_windows(
    models: Mapping[str, LanguageModel],
    windows: Int64[Tensor, "n length"],
    *,
    reference: str | None,
    after_window: Callable[[], None] = lambda: None,
    decode: Callable[[Tensor], str] | None = None,
) -> dict[str, Quality]:
    """Score every model on every window.

    Args:
        models: name → model; all see the same windows in the same process.
        reference: the name of the model the others are compared with, or None.
        decode: the text of some tokens, for metrics that count it.

    Raises:
        NumericalError: a model's loss is not finite.
        EvaluationError: a model's vocabulary is not the reference's.
    """
    sums = {name: _new_sums() for name in models}
    order = sorted(models, key=lambda name: name != reference)
    for window in windows:
        reference_logits: Tensor | None = None
        for name in order:
            model = models[name]
            logits = model(input_ids=window[None].to(model.device), use_cache=False).logits[0, :-1]
            if reference_logits is not None and logits.shape != reference_logits.shape:
                raise EvaluationError(
                    f"{name} predicts {logits.shape[-1]} tokens, {reference} predicts "
                    f"{reference_logits.shape[-1]}; models of different vocabularies cannot be compared"
                )
            _add(sums[name], logits, reference_logits, window, decode)
            if name == reference:
                reference_logits = logits
        after_window()
    compared = sums[reference] if reference is not None else None
    counts = {"windows": len(windows), "tokens": sum(len(window) - 1 for window in windows)}
    return {
        name: _figures(name, own, None if own is compared else compared) | counts
        for name, own in sums.items()
    }


def _new_sums() -> dict[str, Sums]:
    return {metric.name: Sums(import_module(metric.module).Rule()) for metric in METRICS}


def _add(
    sums: Mapping[str, Sums],
    logits: Tensor,
    reference: Tensor | None,
    window: Tensor,
    decode: Callable[[Tensor], str] | None,
) -> None:
    for one in sums.values():
        one.begin_window()
    for start in range(0, len(logits), POSITIONS_AT_ONCE):
        some = slice(start, start + POSITIONS_AT_ONCE)
        positions = Positions(
            logits=logits[some],
            reference_logits=None if reference is None else reference[some],
            targets=window[1:][some].to(logits.device),
            before=window[: start + 1],
            decode=decode,
        )
        for one in sums.values():
            one.add(one.rule.measure(positions))


def _figures(name: str, sums: Mapping[str, Sums], reference: Mapping[str, Sums] | None) -> Quality:
    figures: Quality = {}
    for metric, own in sums.items():
        figures |= own.figures(metric, None if reference is None else reference[metric])
    if any(value is not None and not math.isfinite(value) for value in figures.values()):
        raise NumericalError(name, "evaluation loss")
    return figures

"""Metrics of models on the same windows, one window of all models at a time."""

import math
from collections.abc import Callable, Mapping
from importlib import import_module

import torch
from jaxtyping import Int64
from torch import Tensor

from spq_core.errors import EvaluationError, NumericalError
from spq_core.evaluation.gguf import LanguageModel
from spq_core.evaluation.metrics.registry import METRICS
from spq_core.evaluation.metrics.tally import Positions, Tally

POSITIONS_AT_ONCE = 256
"""Positions per softmax, so that a large vocabulary does not double the memory for logits."""
Quality = dict[str, float | None]
"""Metrics by name, and `tokens`: predicted ones, n − 1 for each window of n. None where a metric compares with
the reference, for the reference itself or without one."""


def _no_text(_tokens: Tensor) -> str:
    raise EvaluationError("a metric asks for text, and nothing here decodes tokens")


@torch.no_grad()
def score_windows(
    models: Mapping[str, LanguageModel],
    windows: Int64[Tensor, "n length"],
    *,
    reference: str | None,
    after_window: Callable[[], None] = lambda: None,
    decode: Callable[[Tensor], str] = _no_text,
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
    tallies = {name: _new_tallies() for name in models}
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
            _add(tallies[name], logits, reference_logits, window, decode)
            if name == reference:
                reference_logits = logits
        after_window()
    predicted = sum(len(window) - 1 for window in windows)
    return {name: _figures(name, own, predicted) for name, own in tallies.items()}


def _new_tallies() -> dict[str, Tally]:
    return {metric.name: import_module(metric.module).Tally() for metric in METRICS}


def _add(
    tallies: Mapping[str, Tally],
    logits: Tensor,
    reference: Tensor | None,
    window: Tensor,
    decode: Callable[[Tensor], str],
) -> None:
    for start in range(0, len(logits), POSITIONS_AT_ONCE):
        some = slice(start, start + POSITIONS_AT_ONCE)
        positions = Positions(
            logits=logits[some],
            reference_logits=None if reference is None else reference[some],
            targets=window[1:][some].to(logits.device),
            before=window[: start + 1],
            decode=decode,
        )
        for tally in tallies.values():
            tally.add(positions)


def _figures(name: str, tallies: Mapping[str, Tally], tokens: int) -> Quality:
    values = {metric: tally.value() for metric, tally in tallies.items()}
    if any(value is not None and not math.isfinite(value) for value in values.values()):
        raise NumericalError(name, "evaluation loss")
    return {**values, "tokens": tokens}

"""Perplexity of models on the same windows, and how far each strays from a reference."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional

from spq_core.errors import EvaluationError, NumericalError
from spq_core.evaluation.gguf import LanguageModel

POSITIONS_AT_ONCE = 256
"""Positions per softmax, so that a large vocabulary does not double the memory for logits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """Figures of one model over all predicted tokens."""

    perplexity: float
    """exp of the mean negative log-likelihood per token."""
    tokens: int
    """Predicted tokens: each window of n tokens predicts n − 1."""
    kl: float | None
    """Mean KL(reference ‖ model) in nats; None for the reference or without one."""
    top1: float | None
    """Share of tokens (0–1) where model and reference rank the same token first."""


@dataclass(slots=True)
class _Tally:
    nll: float = 0.0
    tokens: int = 0
    kl: float = 0.0
    same_top1: int = 0


@torch.no_grad()
def score_windows(
    models: Mapping[str, LanguageModel],
    windows: Int64[Tensor, "n length"],
    *,
    reference: str | None,
    after_window: Callable[[], None] = lambda: None,
) -> dict[str, Quality]:
    """Score every model on every window, one window of all models at a time.

    Args:
        models: name → model; all see the same windows in the same process.
        reference: the name of the model the others are compared with, or None.

    Raises:
        NumericalError: a model's loss is not finite.
        EvaluationError: a model's vocabulary is not the reference's.
    """
    tallies = {name: _Tally() for name in models}
    order = sorted(models, key=lambda name: name != reference)
    for window in windows:
        targets = window[1:]
        reference_logits: Tensor | None = None
        for name in order:
            model = models[name]
            logits = model(input_ids=window[None].to(model.device), use_cache=False).logits[0, :-1]
            _add_likelihood(tallies[name], logits, targets.to(logits.device))
            if name == reference:
                reference_logits = logits
            elif reference_logits is not None:
                if logits.shape != reference_logits.shape:
                    raise EvaluationError(
                        f"{name} predicts {logits.shape[-1]} tokens, {reference} predicts "
                        f"{reference_logits.shape[-1]}; models of different vocabularies cannot be compared"
                    )
                _add_divergence(tallies[name], reference_logits, logits)
        after_window()
    compared = reference is not None
    return {
        name: _finish(name, tally, compared=compared and name != reference)
        for name, tally in tallies.items()
    }


def _add_likelihood(
    tally: _Tally, logits: Float[Tensor, "t vocab"], targets: Int64[Tensor, " t"]
) -> None:
    for start in range(0, len(targets), POSITIONS_AT_ONCE):
        part = slice(start, start + POSITIONS_AT_ONCE)
        losses = functional.cross_entropy(logits[part].float(), targets[part], reduction="sum")
        tally.nll += float(losses.double())
    tally.tokens += len(targets)


def _add_divergence(
    tally: _Tally, reference: Float[Tensor, "t vocab"], logits: Float[Tensor, "t vocab"]
) -> None:
    """Add KL(p ‖ q) = Σ p (log p − log q) and the top-1 matches of each position."""
    for start in range(0, len(logits), POSITIONS_AT_ONCE):
        part = slice(start, start + POSITIONS_AT_ONCE)
        log_p = reference[part].float().log_softmax(dim=-1)
        log_q = logits[part].float().log_softmax(dim=-1)
        tally.kl += float(
            functional.kl_div(log_q, log_p, reduction="sum", log_target=True).double()
        )
        tally.same_top1 += int((log_p.argmax(dim=-1) == log_q.argmax(dim=-1)).sum())


def _finish(name: str, tally: _Tally, *, compared: bool) -> Quality:
    mean = tally.nll / tally.tokens
    if not math.isfinite(mean) or not math.isfinite(tally.kl):
        raise NumericalError(name, "evaluation loss")
    return Quality(
        perplexity=math.exp(min(mean, 700.0)),
        tokens=tally.tokens,
        kl=max(0.0, tally.kl / tally.tokens) if compared else None,
        top1=tally.same_top1 / tally.tokens if compared else None,
    )

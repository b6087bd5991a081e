"""Metrics of a model on windows: one model at a time, beside what a reference predicted on the same windows."""

import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from transformers import PreTrainedModel

from spq_core.errors import EvaluationError, NumericalError
from spq_core.evaluation.gguf import LanguageModel
from spq_core.evaluation.metrics.metric import Positions
from spq_core.evaluation.metrics.registry import METRICS
from spq_core.evaluation.metrics.sums import Sums
from spq_core.evaluation.predictor import (
    AfterStep,
    LogitsPredictor,
    OfStates,
    Predictions,
    Predictor,
    StatePredictor,
    WholePredictor,
)

Quality = dict[str, float | None]
"""Metrics by name with their standard errors (`<name>_se`), and `windows` and `tokens`: predicted ones, n − 1 for each
window of n. None where a metric compares with the reference, for the reference itself or without one, and where too few
windows tell a standard error."""
WindowSums = Mapping[str, Sequence[float]]
"""By metric, its sum over each window."""


@dataclass(frozen=True, slots=True)
class Scores:
    """Of one model on one text."""

    figures: Quality
    sums: WindowSums
    """What another model is compared with, window by window."""


@dataclass(frozen=True, slots=True)
class KeptStates:
    """What arrived at a model's head, window after window, in a file; and the head."""

    file: Path
    length: int
    """Of a window."""
    head: StatePredictor

    def predict(self) -> Iterator[Predictions]:
        """The same predictions again."""
        with self.file.open("rb") as content:
            count = self.file.stat().st_size
            while content.tell() < count:
                yield OfStates(_read_states(content, self.length), self.head)


@dataclass(frozen=True, slots=True)
class Reference:
    """What a model is compared with."""

    name: str
    predictions: Callable[[], Iterator[Predictions]]
    """For each window, from the first on."""
    sums: WindowSums


def score(
    name: str,
    predictor: Predictor,
    windows: Int64[Tensor, "n length"],
    *,
    against: Reference | None = None,
    after_step: Callable[[], None] = lambda: None,
    decode: Callable[[Tensor], str] | None = None,
) -> Scores:
    """Score one model.

    Args:
        after_step: called after each of the predictor's steps, and each window.
        decode: the text of some tokens, for metrics that count it.

    Raises:
        NumericalError: its loss is not finite.
        EvaluationError: its vocabulary is not the reference's.
    """
    sums = {metric.name: Sums(import_module(metric.module).Rule()) for metric in METRICS}
    theirs = None if against is None else against.predictions()
    for window, own in zip(windows, predictor.predict(windows, after_step), strict=True):
        other = None if theirs is None else next(theirs)
        for one in sums.values():
            one.begin_window()
        step = own.step if other is None else min(own.step, other.step)
        for some in _even_parts(len(window) - 1, step):
            _add(sums.values(), _positions(name, own, other, against, window, some, decode))
        after_step()
    counts = {"windows": len(windows), "tokens": sum(len(window) - 1 for window in windows)}
    figures: Quality = {}
    for metric, summed in sums.items():
        figures |= summed.figures(metric, None if against is None else against.sums[metric])
    if any(value is not None and not math.isfinite(value) for value in figures.values()):
        raise NumericalError(name, "evaluation loss")
    return Scores(figures | counts, {metric: one.sums.tolist() for metric, one in sums.items()})


def keep_states(predictor: StatePredictor, file: Path) -> Predictor:
    """The predictor, writing what arrives at its head to a file while it is asked."""
    return _Keeping(predictor, file)


def score_windows(
    models: Mapping[str, LanguageModel],
    windows: Int64[Tensor, "n length"],
    *,
    reference: str | None,
    decode: Callable[[Tensor], str] | None = None,
) -> dict[str, Quality]:
    """Score loaded models; see `score`.

    Args:
        models: name → model; one of transformers keeps its head.
        reference: the name of the model the others are compared with, or None.
    """
    found: dict[str, Quality] = {}
    against: Reference | None = None
    with tempfile.TemporaryDirectory(prefix="spq-states-") as folder:
        for name in sorted(models, key=lambda name: name != reference):
            model = models[name]
            head = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
            predictor = predictor_of(model)
            if name == reference:
                kept = KeptStates(Path(folder) / "states", windows.shape[1], _giving(predictor))
                asked = keep_states(kept.head, kept.file)
                scores = score(name, asked, windows, decode=decode)
                against = Reference(name, kept.predict, scores.sums)
            else:
                scores = score(name, predictor, windows, against=against, decode=decode)
            found[name] = scores.figures
            if isinstance(model, PreTrainedModel) and name != reference:
                model.set_output_embeddings(head)
        if reference is not None:
            first: Any = models[reference]
            first.set_output_embeddings(first.get_output_embeddings().head)
    return {name: found[name] for name in models}


def predictor_of(model: LanguageModel) -> Predictor:
    """How a loaded model is asked."""
    return WholePredictor(model) if isinstance(model, PreTrainedModel) else LogitsPredictor(model)


def _giving(predictor: Predictor) -> StatePredictor:
    if not isinstance(predictor, StatePredictor):
        raise EvaluationError("a GGUF file cannot be what others are compared with")
    return predictor


@dataclass(frozen=True, slots=True)
class _Keeping:
    predictor: StatePredictor
    file: Path

    def steps(self, windows: Int64[Tensor, "n length"]) -> int:
        return self.predictor.steps(windows)

    def predict(
        self, windows: Int64[Tensor, "n length"], after_step: AfterStep = lambda: None
    ) -> Iterator[Predictions]:
        with self.file.open("wb") as content:
            for states in self.predictor.states(windows, after_step):
                _write_states(content, states)
                yield OfStates(states, self.predictor)


def _write_states(content: IO[bytes], states: Float[Tensor, "length dim"]) -> None:
    content.write(np.int64(states.shape[1]).tobytes())
    states.cpu().float().numpy().tofile(content)


def _read_states(content: IO[bytes], length: int) -> Float[Tensor, "length dim"]:
    width = int(np.frombuffer(content.read(8), dtype=np.int64)[0])
    values = np.fromfile(content, dtype=np.float32, count=length * width)
    return torch.from_numpy(values).view(length, width)


def _even_parts(count: int, most: int) -> Iterator[slice]:
    """Slices of 0 to `count`, of nearly equal size: a small rest would be computed in another way."""
    parts = -(-count // most)
    bounds = [count * part // parts for part in range(parts + 1)]
    return (slice(start, stop) for start, stop in pairwise(bounds))


def _positions(
    name: str,
    own: Predictions,
    other: Predictions | None,
    against: Reference | None,
    window: Tensor,
    some: slice,
    decode: Callable[[Tensor], str] | None,
) -> Positions:
    logits = own.logits(some)
    theirs = None if other is None else other.logits(some).to(logits.device)
    if theirs is not None and against is not None and theirs.shape != logits.shape:
        raise EvaluationError(
            f"{name} predicts {logits.shape[-1]} tokens, {against.name} predicts {theirs.shape[-1]}; "
            "models of different vocabularies cannot be compared"
        )
    return Positions(
        logits=logits,
        reference_logits=theirs,
        targets=window[1:][some].to(logits.device),
        before=window[: some.start + 1],
        decode=decode,
    )


def _add(sums: Iterable[Sums], positions: Positions) -> None:
    for one in sums:
        one.add(one.rule.measure(positions))

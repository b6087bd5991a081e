"""Texts times models: one model at a time, and nothing that is known already.

Of the reference only what arrives at its head is kept, on disk, for those that are compared with it.
"""

import hashlib
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxtyping import Int64
from torch import Tensor

from spq_core.artifact.blocked import open_blocked
from spq_core.artifact.read import load_model
from spq_core.errors import EvaluationError
from spq_core.evaluation.candidate import Candidate
from spq_core.evaluation.gguf import SUFFIX, GgufModel
from spq_core.evaluation.known import Key, Known, versions
from spq_core.evaluation.loading import widen
from spq_core.evaluation.metrics.registry import METRICS
from spq_core.evaluation.predictor import (
    LogitsPredictor,
    Predictor,
    StatePredictor,
    StreamedPredictor,
    WholePredictor,
)
from spq_core.evaluation.quality import KeptStates, Reference, Scores, keep_states, score
from spq_core.progress import Phase, PhaseKind, Progress

Windows = Int64[Tensor, "n length"]
KIND = "scores"


def open_predictor(folder: Path, device: str, length: int) -> Predictor:
    """A model that is asked for predictions; on a CPU without ever being whole in memory, where its form allows that.

    Args:
        length: tokens of a window, which a GGUF file is opened for.

    Raises:
        EvaluationError: another library's artifact, without that library.
    """
    if folder.suffix == SUFFIX:
        return LogitsPredictor(GgufModel(folder, length))
    blocked = open_blocked(folder) if device == "cpu" else None
    if blocked is not None:
        return StreamedPredictor(blocked)
    try:
        model = load_model(folder, device=device)
    except ImportError as error:  # another library's artifact, without that library
        raise EvaluationError(f"{folder.name}: {error}") from None
    widen(model, device)
    return WholePredictor(model)


@dataclass(slots=True)
class Scoring:
    """Of some models on some texts."""

    models: Mapping[str, Candidate]
    windows: Mapping[str, Windows]
    """By text."""
    texts: Mapping[str, str]
    """Digests, by text."""
    reference: str | None
    device: str
    decode: Callable[[Tensor], str]
    known: Known
    progress: Progress
    compared: frozenset[str]
    """Texts on which models are compared with the reference."""
    found: dict[tuple[str, str], Scores] = field(default_factory=dict)
    """By model and text."""
    _kept: dict[str, KeptStates] = field(default_factory=dict)
    """Of the reference, by text."""

    def run(self) -> dict[str, dict[str, Scores]]:
        """Scores by model and text.

        Raises:
            NumericalError, EvaluationError: see `quality.score`.
        """
        self._recall()
        with tempfile.TemporaryDirectory(prefix="spq-states-") as scratch:
            for name in sorted(self.models, key=lambda name: name != self.reference):
                wanted = self._wanted(name)
                if wanted:
                    self._score(name, wanted, Path(scratch))
        return {
            name: {text: self.found[name, text] for text in self.windows} for name in self.models
        }

    def _recall(self) -> None:
        for name in self.models:
            for text in self.windows:
                document = self.known.find(KIND, self._key(name, text), name)
                if document is not None:
                    with suppress(KeyError):
                        self.found[name, text] = Scores(document["figures"], document["sums"])

    def _wanted(self, name: str) -> list[str]:
        """Texts that a model has to see."""
        unknown = [text for text in self.windows if (name, text) not in self.found]
        if name != self.reference:
            return unknown
        compared = {
            text
            for text in self.compared
            if any((other, text) not in self.found for other in self.models if other != name)
        }
        return [
            text
            for text in self.windows
            if text in unknown or (text in compared and self._states(text) is None)
        ]

    def _score(self, name: str, wanted: list[str], scratch: Path) -> None:
        length = max(cut.shape[1] for cut in self.windows.values())
        predictor = open_predictor(self.models[name].folder, self.device, length)
        for text in wanted:
            windows = self.windows[text]
            title = f"perplexity on {text} ({name})"
            self.progress.begin(
                Phase(PhaseKind.SCORING, f"perplexity/{text}/{name}", title),
                predictor.steps(windows) + len(windows),
                "steps",
            )
            asked = predictor
            if name == self.reference and text in self.compared:
                asked = self._keeping(text, predictor, scratch)
            scores = score(
                name, asked, windows, decode=self.decode,
                against=None if name == self.reference else self._against(text),
                after_step=lambda: self.progress.advance(""),
            )  # fmt: skip
            if name == self.reference:
                self._keep_states(text)
            self.found[name, text] = scores
            document = {"figures": scores.figures, "sums": scores.sums}
            self.known.note(KIND, self._key(name, text), document)
        if name == self.reference and isinstance(predictor, StatePredictor):
            predictor.forget_layers()
        if self.compared <= set(wanted):
            self.known.reused.pop(
                name, None
            )  # known, but its states were not: they are measured now

    def _keeping(self, text: str, predictor: Predictor, scratch: Path) -> Predictor:
        if not isinstance(predictor, StatePredictor):
            raise EvaluationError("a GGUF file cannot be what others are compared with")
        length = self.windows[text].shape[1]
        file = scratch / f"{len(self._kept)}"
        self._kept[text] = KeptStates(file, length, predictor)
        return keep_states(predictor, file)

    def _keep_states(self, text: str) -> None:
        """Where states outlive the run, put them there when they are complete."""
        kept, place = self._kept.get(text), self.known.states_place(self._states_key(text))
        if kept is not None and place is not None and kept.file.parent != place.parent:
            with suppress(OSError):  # another disk, or a full one: they stay where they are
                kept.file.rename(place)
                self._kept[text] = KeptStates(place, kept.length, kept.head)

    def _against(self, text: str) -> Reference | None:
        if self.reference is None or text not in self.compared:
            return None
        if text not in self._kept:
            file = self._states(text)
            if file is None:
                raise RuntimeError("the reference's states are neither known nor measured")
            predictor = open_predictor(
                self.models[self.reference].folder, self.device, self.windows[text].shape[1]
            )
            if not isinstance(predictor, StatePredictor):
                raise RuntimeError("states of a model that gives none")
            self._kept[text] = KeptStates(file, self.windows[text].shape[1], predictor)
        return Reference(
            self.reference, self._kept[text].predict, self.found[self.reference, text].sums
        )

    def _states(self, text: str) -> Path | None:
        return self.known.states(self._states_key(text))

    def _key(self, name: str, text: str) -> Key | None:
        """What scores depend on; None where they cannot be known again."""
        own = self._base(name, text)
        alone = name == self.reference or text not in self.compared
        if own is None or alone or self.reference is None:
            return own
        other = self.models[self.reference].identity
        return None if other is None else own | {"reference": other}

    def _states_key(self, text: str) -> Key | None:
        return None if self.reference is None else self._base(self.reference, text)

    def _base(self, name: str, text: str) -> dict[str, Any] | None:
        identity = self.models[name].identity
        if identity is None:
            return None
        tokens = hashlib.sha256(self.windows[text].numpy().tobytes()).hexdigest()
        return {
            "model": identity, "windows": tokens, "length": self.windows[text].shape[1],
            "text": self.texts[text], "device": self.device.partition(":")[0],
            "metrics": sorted(metric.name for metric in METRICS), "versions": versions(),
        }  # fmt: skip

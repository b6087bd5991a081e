"""Which text statistics come from, and how much of it. Free of torch."""

import math
from typing import Annotated, Literal, NamedTuple

from pydantic import Field

from spq_core.documents import Document

AUTO = "auto"
LEAST_SENSITIVITY_TOKENS, MOST_SENSITIVITY_TOKENS = 4096, 16384
MOST_SAMPLES = 4096
PASSED_SECONDS = 5.5e-11
"""Per token and weight of the layers on two cores, for all looks a calibrated stage takes (measured)."""
SECONDS = 60
DatasetName = Annotated[str, Field(min_length=1, max_length=64)]


class Layers(NamedTuple):
    """What of a model decides how much text it needs, and how long that takes."""

    widest_input: int
    """Inputs of the widest matrix."""
    weights: int
    """Of all decoder layers."""


class Calibration(Document):
    """Which text the activation statistics come from, and how much of it."""

    dataset: DatasetName = "wikitext2"
    """Name of a text: its validation split, or what stands for it."""
    mixed_with: Annotated[tuple[DatasetName, ...], Field(max_length=4)] = ()
    """Further texts that give some of the samples: so weights are fitted to what other text sends through a model, too. One that
    cannot be had is left out, and the report says so; a name that nobody knows is refused."""
    mixed_share: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5
    """Share of the samples that these give between them, in equal parts."""
    form: Literal["lines", "windows"] = "lines"
    """`lines`: each sample is one non-blank line, cut or padded to `length`. `windows`: the text is
    encoded whole and samples are stretches of it, evenly spaced; no pads."""
    samples: Annotated[int, Field(ge=1, le=MOST_SAMPLES)] | Literal["auto"] = 8
    """`auto`: as many as the model's widest input asks for (`tokens_per_input`), and `least_tokens` at least. A
    second moment of n inputs that was measured on fewer than a few n tokens is mostly noise."""
    tokens_per_input: Annotated[float, Field(gt=0.0, le=100.0)] = 5.0
    """With `samples: auto`, calibration tokens for each input of the widest matrix in a layer."""
    least_tokens: Annotated[int, Field(ge=1, le=1 << 24)] = 8192
    """With `samples: auto`, calibration tokens however narrow the model is."""
    most_minutes: Annotated[float, Field(gt=0.0, le=10_000.0)] | None = None
    """With `samples: auto`, no more tokens than a stage that looks at text takes so many minutes for on two cores, as estimated. On large
    models that is fewer than `tokens_per_input` asks for, and costs quality."""
    length: Annotated[int, Field(ge=8, le=8192)] = 128
    """Tokens per sample."""
    allow_evaluation_text: bool = False
    """Take the samples from the evaluation split, as the paper's code does. The report says so."""

    @property
    def datasets(self) -> tuple[str, ...]:
        """All names, that of the main text first."""
        return (self.dataset, *self.mixed_with)

    def count(self, layers: Layers, length: int | None = None) -> int:
        """Number of samples for a model with such layers.

        Args:
            length: tokens per sample, where the model has fewer positions than `length`.
        """
        if not isinstance(self.samples, str):
            return self.samples
        size = length or self.length
        tokens = max(self.least_tokens, self.tokens_per_input * layers.widest_input)
        count = min(MOST_SAMPLES, math.ceil(tokens / size))
        if self.most_minutes is None:
            return count
        in_time = SECONDS * self.most_minutes / (PASSED_SECONDS * layers.weights)
        return max(1, min(count, int(in_time / size)))


def sensitivity_tokens(calibration: int) -> int:
    """Tokens of the walk that says how much each output counts, of so many calibration tokens.

    Half of them, as it takes three times as long a token; what more than 16,384 would tell is not worth it.
    """
    return min(
        calibration, max(LEAST_SENSITIVITY_TOKENS, min(calibration // 2, MOST_SENSITIVITY_TOKENS))
    )

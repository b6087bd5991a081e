"""What a recipe says about a stage that trains. Free of torch."""

from typing import Annotated, Literal, Self

from pydantic import Field

from spq_core.methods.settings import StageSettings, Toy
from spq_core.models.shapes import ModelShapes

TRAINED_SECONDS = 8e-11
"""Per token and weight."""


class TrainedSettings(StageSettings):
    """Trains on the whole model between two walks, on rows of the recipe's text."""

    objective: Literal["logits", "text"] = "logits"
    """`logits`: towards the source's predictions (distillation). `text`: towards the text itself, as
    the papers do; a model can come out better than its source on that text, and worse elsewhere."""
    steps: Annotated[int, Field(ge=1, le=100_000)] = 100
    """Of the optimizer (AdamW)."""
    batch: Annotated[int, Field(ge=1, le=1024)] = 4
    """Samples per step."""
    form: Literal["lines", "windows"] = "windows"
    """As for `calibration`, whose dataset is used."""
    length: Annotated[int, Field(ge=8, le=8192)] = 256
    """Tokens per sample."""
    learning_rate: Annotated[float, Field(gt=0.0, le=1.0)] = 1e-4
    """At its highest."""
    weight_decay: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Of AdamW."""
    decay_to_zero: bool = True
    """Lower the learning rate linearly to zero; constant otherwise."""
    seed: Annotated[int, Field(ge=0, lt=1 << 31)] = 42
    """Of the samples' order and the adapters' first values."""

    @property
    def learns(self) -> bool:
        """Between two walks."""
        return True

    @property
    def needs_calibration(self) -> bool:
        """It trains on text of the recipe's dataset."""
        return True

    @property
    def fits_to_inputs(self) -> bool:
        """It masks pads."""
        return False

    @property
    def passes_samples(self) -> bool:
        """Rows of its own go through the model; see `seconds`."""
        return False

    @property
    def trained_tokens(self) -> int:
        """That all steps pass through the model."""
        return self.steps * self.batch * self.length

    def seconds(self, shapes: ModelShapes) -> float:
        """Of its steps."""
        return TRAINED_SECONDS * self.trained_tokens * shapes.elements

    def for_preflight(self, toy: Toy, *, fixed: bool) -> Self:
        """Two short steps."""
        del fixed
        return self.model_copy(update={"steps": 2, "batch": 1, "length": toy.tokens})

"""The recipe document: what to do to a model, validated where it enters.

A recipe is JSON or YAML. Unknown keys are refused, because a mistyped key costs hours of compute.
The JSON Schema is `Recipe.model_json_schema()`; the service publishes it.
"""

import hashlib
import json
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from spq_core.errors import RecipeError


class Document(BaseModel):
    """Base of every recipe part: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ScaleMode(StrEnum):
    """How many scales a quantized matrix gets, and which matrices get which."""

    TENSOR = "tensor"
    CHANNEL = "channel"
    MIX_NAME = "mix_name"
    MIX_PERCENTILE = "mix_percentile"
    MIX_MEANSTD = "mix_meanstd"


class SvdStage(Document):
    """Replace attention projections by low-rank pairs (arXiv:2602.18420, section on SVD)."""

    type: Literal["svd"]
    variance: Annotated[float, Field(gt=0.0, le=1.0)] = 0.96
    """Share of the squared singular values to keep."""


class PruneStage(Document):
    """Remove MLP neurons by mean absolute activation, more in quiet layers (arXiv:2602.18420)."""

    type: Literal["prune"]
    max_ratio: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.05
    """Share of neurons removed from the quietest layer."""
    min_ratio: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of neurons removed from the loudest layer."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_ratio > self.max_ratio:
            raise ValueError(f"min_ratio {self.min_ratio} is above max_ratio {self.max_ratio}")
        return self


class QuantizeStage(Document):
    """Symmetric 8-bit weights."""

    type: Literal["quantize"]
    bits: Literal[8] = 8
    mode: ScaleMode = ScaleMode.CHANNEL
    embedding: bool = True
    """Quantize the token embedding too; a tied head then shares its codes."""


Stage = Annotated[SvdStage | PruneStage | QuantizeStage, Field(discriminator="type")]


class Calibration(Document):
    """Which text the activation statistics come from."""

    dataset: Annotated[str, Field(min_length=1, max_length=64)] = "wikitext2"
    samples: Annotated[int, Field(ge=1, le=4096)] = 8
    length: Annotated[int, Field(ge=8, le=8192)] = 128
    """Tokens per sample; each sample is one non-blank line, cut or padded to this length."""
    allow_evaluation_text: bool = False
    """Take the samples from the evaluation split, as the paper's code does. The report says so."""


class Gates(Document):
    """Limits a result must keep to be published."""

    max_perplexity_ratio: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] | None = None
    on_fail: Literal["discard", "keep"] = "discard"


class Metadata(Document):
    """Name and purpose of a recipe."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")] = "custom"
    description: Annotated[str, Field(max_length=1000)] = ""


class Recipe(Document):
    """An ordered list of stages and the settings around them."""

    api_version: Annotated[Literal["recipe/v1"], Field(alias="apiVersion")] = "recipe/v1"
    metadata: Metadata = Metadata()
    stages: Annotated[tuple[Stage, ...], Field(min_length=1, max_length=8)]
    calibration: Calibration = Calibration()
    profile: Literal["compact"] = "compact"
    gates: Gates = Gates()

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    @model_validator(mode="after")
    def _each_stage_once(self) -> Self:
        kinds = [stage.type for stage in self.stages]
        repeated = sorted({kind for kind in kinds if kinds.count(kind) > 1})
        if repeated:
            raise ValueError(f"each stage type may appear once, repeated: {', '.join(repeated)}")
        return self

    @property
    def needs_calibration(self) -> bool:
        """Whether any stage looks at activations."""
        return any(isinstance(stage, PruneStage) for stage in self.stages)

    def document(self) -> dict[str, Any]:
        """The recipe with every default written out, as plain JSON values."""
        return self.model_dump(mode="json", by_alias=True)

    def sha256(self) -> str:
        """Digest of the resolved document, independent of key order and spelling of defaults."""
        text = json.dumps(self.document(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def parse_recipe(document: object) -> Recipe:
    """Validate a recipe document.

    Raises:
        RecipeError: with one line per problem, each naming the key and the value.
    """
    try:
        return Recipe.model_validate(document)
    except ValidationError as error:
        raise RecipeError("; ".join(_describe(problem) for problem in error.errors())) from None


def _describe(problem: Any) -> str:
    """One pydantic problem as `where: what, got value`."""
    where = ".".join(str(part) for part in problem["loc"]) or "recipe"
    if problem["type"] == "extra_forbidden":
        return f"{where}: unknown key"
    return f"{where}: {problem['msg']}, got {str(problem.get('input'))[:80]}"

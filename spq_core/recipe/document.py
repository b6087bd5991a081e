"""The recipe document: what to do to a model, validated where it enters.

A recipe is JSON or YAML. Unknown keys are refused, because a mistyped key costs hours of compute.
The JSON Schema is `Recipe.model_json_schema()`; the service publishes it.
"""

import hashlib
import json
import math
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, ValidationError, model_validator

from spq_core.errors import RecipeError
from spq_core.recipe.settings import (
    Document,
    PruneHeadsStage,
    PruneStage,
    QuantizeStage,
    RecoverStage,
    Stage,
    SvdStage,
    fits_to_inputs,
    is_auto,
    needs_calibration,
    needs_sensitivity,
    portability_error,
)

LEAST_SENSITIVITY_TOKENS, MOST_SENSITIVITY_TOKENS = 4096, 16384
MOST_SAMPLES = 4096


class Calibration(Document):
    """Which text the activation statistics come from."""

    dataset: Annotated[str, Field(min_length=1, max_length=64)] = "wikitext2"
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
    length: Annotated[int, Field(ge=8, le=8192)] = 128
    """Tokens per sample."""
    allow_evaluation_text: bool = False
    """Take the samples from the evaluation split, as the paper's code does. The report says so."""

    def count(self, widest: int, length: int | None = None) -> int:
        """Number of samples for a model whose widest matrix has so many inputs.

        Args:
            length: tokens per sample, where the model has fewer positions than `length`.
        """
        if not isinstance(self.samples, str):
            return self.samples
        tokens = max(self.least_tokens, self.tokens_per_input * widest)
        return min(MOST_SAMPLES, math.ceil(tokens / (length or self.length)))


def sensitivity_tokens(calibration: int) -> int:
    """Tokens of the walk that says how much each output counts, of so many calibration tokens.

    Half of them, as it takes three times as long a token; what more than 16,384 would tell is not worth it.
    """
    return min(
        calibration, max(LEAST_SENSITIVITY_TOKENS, min(calibration // 2, MOST_SENSITIVITY_TOKENS))
    )


class Target(Document):
    """How large the artifact may be, or how far from the source; one of the two."""

    bytes_ratio: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    """Artifact bytes over the source's, with 16 bits a weight at most: float32 sources count half."""
    max_kl: Annotated[float, Field(gt=0.0, le=10.0)] | None = None
    """KL divergence from the source, in nats per token of the calibration text."""
    allocation: Literal["loss", "uniform", "pgsvd", "mgaa"] = "loss"
    """How bytes are shared out. `loss`: by expected loss per byte. For comparison: `uniform`, equal
    bits for all; `pgsvd`, equal relative error for all (arXiv:2510.05544); `mgaa`, by how much a
    layer turns its input (arXiv:2507.03294)."""

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.bytes_ratio is None) == (self.max_kl is None):
            raise ValueError("give either bytes_ratio or max_kl")
        return self


class Gates(Document):
    """Limits a result must keep, on every evaluation text, to be published."""

    max_perplexity_ratio: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] | None = None
    max_kl: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] | None = None
    """Mean KL(source ‖ result) in nats per token."""
    min_top1: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    """Share of tokens whose most likely successor is the source's."""
    on_fail: Literal["discard", "keep"] = "discard"

    @property
    def need_measurement(self) -> bool:
        """Whether there is a limit to compare figures with."""
        return (self.max_perplexity_ratio, self.max_kl, self.min_top1) != (None, None, None)


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
    target: Target | None = None
    profile: Literal["compact", "portable"] = "compact"
    """`compact`: every form of ours, loaded with our package. `portable`: compressed-tensors, loaded by
    stock transformers and vLLM; 8 or 4 bits, equal widths, embedding and head as they were."""
    floats: Literal["16-bit", "source"] = "16-bit"
    """What stays in floating point: in 16 bits (bfloat16, where the source has float32), or as wide as the
    source stores it."""
    gates: Gates = Gates()

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    @model_validator(mode="after")
    def _each_stage_once(self) -> Self:
        kinds = [stage.type for stage in self.stages]
        repeated = sorted({kind for kind in kinds if kinds.count(kind) > 1})
        if repeated:
            raise ValueError(f"each stage type may appear once, repeated: {', '.join(repeated)}")
        return self

    @model_validator(mode="after")
    def _target_where_needed(self) -> Self:
        by_rate = any(
            isinstance(stage, QuantizeStage) and stage.method == "rate" for stage in self.stages
        )
        if by_rate and self.target is None:
            raise ValueError("quantize with method rate needs a target: bytes_ratio or max_kl")
        auto = [stage.type for stage in self.stages if is_auto(stage)]
        if auto and self.target is None:
            raise ValueError("auto needs a target to choose by")
        if auto and not by_rate and any(isinstance(one, QuantizeStage) for one in self.stages):
            raise ValueError(
                "auto together with quantization needs method rate, which shares its target"
            )
        if self.target is not None and not by_rate:
            self._check_structural_target(self.target)
        return self

    def _check_structural_target(self, target: Target) -> None:
        """Without quantization by rate a target decides what stages remove, and nothing else may."""
        open_stages = [stage for stage in self.stages if is_auto(stage)]
        if not open_stages:
            raise ValueError(
                "a target needs a quantize stage with method rate, or stages set to auto"
            )
        if target.max_kl is not None:
            raise ValueError("max_kl needs a quantize stage with method rate")
        for stage in self.stages:
            if not isinstance(stage, RecoverStage) and not is_auto(stage):
                raise ValueError(
                    f"without quantization the target decides all that is removed; set {stage.type} to auto"
                )
            if isinstance(stage, RecoverStage) and stage.adapters == "kept":
                raise ValueError("a target in bytes leaves no room for kept adapters; merge them")

    @model_validator(mode="after")
    def _in_a_possible_order(self) -> Self:
        kinds = [stage.type for stage in self.stages]
        for index, stage in enumerate(self.stages[:-1]):
            if isinstance(stage, QuantizeStage) and not stage.is_plain:
                raise ValueError(
                    "quantize must be the last stage, unless it is plain 8-bit rounding"
                )
            if isinstance(stage, RecoverStage) and stage.adapters == "kept":
                raise ValueError(
                    "recover with adapters kept must be the last stage; use merged to go on from it"
                )
            if isinstance(stage, SvdStage) and "prune-heads" in kinds[index:]:
                raise ValueError("prune-heads must come before svd")
        if "prune-heads" in kinds and any(
            isinstance(stage, SvdStage) and is_auto(stage) for stage in self.stages
        ):
            raise ValueError("variance auto and prune-heads cannot share a matrix; use one of them")
        return self

    @model_validator(mode="after")
    def _nothing_updates_codes(self) -> Self:
        kinds = [stage.type for stage in self.stages]
        quantized = kinds.index("quantize") if "quantize" in kinds else len(kinds)
        for stage in self.stages[quantized + 1 :]:
            if isinstance(stage, PruneHeadsStage) or (
                isinstance(stage, PruneStage) and stage.update != "none"
            ):
                raise ValueError(
                    f"{stage.type} updates weights, which are codes by then; put it before quantize"
                )
            if isinstance(stage, RecoverStage) and stage.adapters == "merged":
                raise ValueError(
                    "adapters cannot be merged into quantized weights; set adapters to kept, "
                    "or recover before quantize"
                )
        return self

    @model_validator(mode="after")
    def _in_a_portable_form(self) -> Self:
        if self.profile == "portable":
            for stage in self.stages:
                reason = portability_error(stage)
                if reason:
                    raise ValueError(
                        f"profile portable: {reason} (profile compact has no such limit)"
                    )
            if self.target is not None:
                raise ValueError(
                    "profile portable: a target needs forms of ours (profile compact has them)"
                )
        return self

    @property
    def needs_calibration(self) -> bool:
        """Whether anything in the recipe looks at text."""
        return self.target is not None or any(needs_calibration(stage) for stage in self.stages)

    @property
    def fits_to_inputs(self) -> bool:
        """Whether anything is fitted to what matrices receive."""
        return self.target is not None or any(fits_to_inputs(stage) for stage in self.stages)

    @property
    def needs_sensitivity(self) -> bool:
        """Whether anything is decided by what it costs in expected loss."""
        return self.target is not None or any(needs_sensitivity(stage) for stage in self.stages)

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
        problems = error.errors()
        # A malformed stage also leaves a list too short; that says nothing new.
        own = [one for one in problems if one["type"] != "too_short" or len(problems) == 1]
        raise RecipeError("; ".join(_describe(problem) for problem in own)) from None


def _describe(problem: Any) -> str:
    """One pydantic problem as `where: what, got value`."""
    where = ".".join(str(part) for part in problem["loc"]) or "recipe"
    if problem["type"] == "extra_forbidden":
        return f"{where}: unknown key"
    said = str(problem["msg"]).removeprefix("Value error, ")
    given = problem.get("input")
    whole = isinstance(given, dict | list | tuple) and problem["type"] == "value_error"
    return f"{where}: {said}" if whole else f"{where}: {said}, got {str(given)[:80]}"

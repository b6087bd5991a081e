"""The stages a recipe may have: what each is told, validated where it enters."""

from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


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


PORTABLE_BITS = (4, 8)
AUTO = "auto"
"""Leaves a number to the recipe's target: what is worth its bytes stays."""


class SvdStage(Document):
    """Replace attention projections by low-rank pairs.

    With `objective: weight` as published (arXiv:2602.18420, section on SVD); with `output` the
    error of the projection's output is minimised instead of that of its weights
    (SVD-LLM, arXiv:2403.07378).
    """

    type: Literal["svd"]
    objective: Literal["weight", "output", "loss"] = "weight"
    """`loss`: of the output, each row counting by how much the loss depends on it."""
    variance: Annotated[float, Field(gt=0.0, le=1.0)] | Literal["auto"] = 0.96
    """Share of the squared singular values to keep: of the weight, or of the output. `auto` lets
    the target choose a rank per matrix, by loss per byte."""
    rank_rule: Literal["objective", "weight"] = "objective"
    """Whose spectrum `variance` is read off. `weight` with another objective keeps the paper's ranks
    and skips, and spends them better."""
    least_share: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """With `variance: auto`, the share of projections that become pairs even where their bytes would
    be better spent whole: those that lose least by it."""
    singular_values: Literal["up", "split", "down"] = "up"
    """Which factor carries the singular values: `up` is the paper's; `down` costs least when each
    row is rounded with a scale of its own."""

    @model_validator(mode="after")
    def _share_where_ranks_are_open(self) -> Self:
        if self.least_share and self.variance != AUTO:
            raise ValueError("least_share needs variance auto")
        return self


class PruneStage(Document):
    """Remove MLP neurons, with or without an update of the weights that remain.

    The defaults are the paper's (arXiv:2602.18420): mean absolute activation, more in quiet layers,
    no update.
    """

    type: Literal["prune"]
    score: Literal["activation", "wanda", "flap", "obs"] = "activation"
    """`wanda`: column norm times input norm; `flap`: column norm times input variance
    (arXiv:2312.11983); `obs`: what the output loses after the best update of the other columns."""
    layer_ratios: Literal["activation", "uniform", "loss"] = "activation"
    """`uniform` takes `max_ratio` from every layer; `loss` takes it from the whole model, the neurons
    of least expected loss first."""
    update: Literal["none", "bias", "least_squares"] = "none"
    """What is done to the following projection: nothing; the removed inputs' mean goes into its
    bias; its columns (and bias, where it has one) are fitted to the outputs it had."""
    max_ratio: Annotated[float, Field(ge=0.0, lt=1.0)] | Literal["auto"] = 0.05
    """Share of neurons removed from the quietest layer. `auto` lets the target choose a number per
    layer, by loss per byte."""
    min_ratio: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of neurons removed from the loudest layer."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.score == "activation" and (self.max_ratio == AUTO or self.layer_ratios == "loss"):
            raise ValueError(
                "max_ratio auto and layer_ratios loss need a score that looks at outputs: "
                "obs, flap or wanda"
            )
        if self.min_ratio and (self.max_ratio == AUTO or self.layer_ratios != "activation"):
            raise ValueError("min_ratio is for layer_ratios activation only")
        if self.max_ratio == AUTO:
            return self
        if self.min_ratio > float(self.max_ratio):
            raise ValueError(f"min_ratio {self.min_ratio} is above max_ratio {self.max_ratio}")
        return self


class PruneHeadsStage(Document):
    """Remove attention heads in whole groups: a key-value head with the query heads that read it.

    So a layer's ratio of query to key-value heads stays, which grouped-query attention needs; with
    one query head per key-value head a group is a head.
    """

    type: Literal["prune-heads"]
    ratio: Annotated[float, Field(ge=0.0, lt=1.0)] | Literal["auto"] = 0.05
    """Share of the model's groups to remove, those of least expected loss first; each layer keeps
    one. `auto` lets the target choose, by loss per byte."""
    update: Literal["none", "bias", "least_squares"] = "least_squares"
    """What is done to the output projection; as for MLP neurons."""


class QuantizeStage(Document):
    """Store weights in fewer bits.

    `round`: each weight to the nearest code. `gptq`: with error feedback (arXiv:2210.17323).
    `rate`: with error feedback onto a lattice whose codes are stored by entropy; the recipe's
    `target` sets how fine it is.
    """

    type: Literal["quantize"]
    method: Literal["round", "gptq", "rate"] = "round"
    bits: Literal[3, 4, 8] = 8
    """Width of a code; `rate` has none."""
    mode: ScaleMode = ScaleMode.CHANNEL
    group_size: Annotated[int, Field(ge=8, le=1 << 16, multiple_of=8)] | None = None
    """Columns that share a scale; all of a row when left out."""
    symmetric: bool = True
    strongest_first: bool = True
    """Round the columns with the strongest inputs first (GPTQ's act-order)."""
    scale_search: bool = False
    """Choose scales by the output error they leave, not by the largest weight."""
    sparsity: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of weights set to zero on the way (SparseGPT, arXiv:2301.00774). Zeros take no fewer
    bytes in packed codes; N:M patterns are not a format of ours, as no runtime here gains by them."""
    damping: Annotated[float, Field(gt=0.0, le=1.0)] = 0.01
    """Share of each input's energy added to it before inversion."""
    embedding: bool = True
    """Quantize the token embedding too; a tied head then shares its codes."""
    leave_whole: bool = True
    """With `rate`: spend bytes that the finest lattices leave over on matrices that stay in the
    source's dtype. Without it the target is a limit, and every matrix runs on 8-bit kernels."""

    @model_validator(mode="after")
    def _fits_the_method(self) -> Self:
        if self.mode != ScaleMode.CHANNEL and not self.is_plain:
            raise ValueError(f"mode {self.mode.value} is for plain symmetric 8-bit rounding only")
        if self.sparsity and self.method != "gptq":
            raise ValueError("sparsity needs method gptq, which pays for removed weights")
        return self

    @property
    def is_plain(self) -> bool:
        """Whether this is symmetric 8-bit rounding with one scale per row or matrix."""
        return (
            self.method == "round"
            and self.bits == 8  # noqa: PLR2004
            and self.group_size is None
            and self.symmetric
            and not self.scale_search
        )


class RecoverStage(Document):
    """Train low-rank adapters (LoRA, arXiv:2106.09685) on the compressed model for a few steps."""

    type: Literal["recover"]
    objective: Literal["logits", "text"] = "logits"
    """`logits`: towards the source's predictions (distillation). `text`: towards the text itself, as
    the paper does; a model can come out better than its source on that text, and worse elsewhere."""
    adapters: Literal["merged", "kept"] = "merged"
    """`merged`: added to the matrices, which must still be floating-point. `kept`: stored beside
    them, for a recovery behind plain quantization."""
    rank: Annotated[int, Field(ge=1, le=1024)] = 8
    alpha: Annotated[float, Field(gt=0.0, le=4096.0)] = 16.0
    """Adapters enter with alpha / rank."""
    trains: tuple[Literal["norms", "embedding"], ...] = ()
    """What is trained besides adapters."""
    steps: Annotated[int, Field(ge=1, le=100_000)] = 100
    batch: Annotated[int, Field(ge=1, le=1024)] = 4
    """Samples per step."""
    form: Literal["lines", "windows"] = "windows"
    """As for `calibration`, whose dataset is used."""
    length: Annotated[int, Field(ge=8, le=8192)] = 256
    """Tokens per sample."""
    learning_rate: Annotated[float, Field(gt=0.0, le=1.0)] = 1e-4
    weight_decay: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    decay_to_zero: bool = True
    """Lower the learning rate linearly to zero; constant otherwise."""
    seed: Annotated[int, Field(ge=0, lt=1 << 31)] = 42


AnyStage = SvdStage | PruneStage | PruneHeadsStage | QuantizeStage | RecoverStage
Stage = Annotated[AnyStage, Field(discriminator="type")]


def is_auto(stage: AnyStage) -> bool:
    """Whether a stage's amount is set to `auto`."""
    match stage:
        case SvdStage():
            return stage.variance == AUTO
        case PruneStage():
            return stage.max_ratio == AUTO
        case PruneHeadsStage():
            return stage.ratio == AUTO
        case _:
            return False


def portability_error(stage: AnyStage) -> str:
    """Why stock runtimes cannot hold what a stage makes; empty if they can."""
    match stage:
        case SvdStage():
            return "pairs of low-rank matrices have no form in compressed-tensors"
        case PruneHeadsStage():
            return "layers with different numbers of heads have no form in a configuration"
        case PruneStage():
            equal = stage.layer_ratios == "uniform" and stage.max_ratio != AUTO
            return "" if equal else "all MLPs have one width there; set layer_ratios: uniform"
        case QuantizeStage():
            return _codes_not_portable(stage)
        case RecoverStage():
            kept = stage.adapters == "kept"
            return "adapters have no form beside quantized weights; merge them" if kept else ""


def _codes_not_portable(stage: QuantizeStage) -> str:
    reasons = {
        "codes stored by entropy have no form in compressed-tensors": stage.method == "rate",
        f"{stage.bits} bits have no kernels in stock runtimes": stage.bits not in PORTABLE_BITS,
        "stock transformers loads no zero points; set symmetric: true": not stage.symmetric,
        "scales are per row or group there": stage.mode != ScaleMode.CHANNEL,
        "embedding and head stay as they are there; set embedding: false": stage.embedding,
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def needs_calibration(stage: AnyStage) -> bool:
    """Whether a stage needs calibration text."""
    match stage:
        case SvdStage():
            return stage.objective != "weight"
        case PruneStage() | PruneHeadsStage() | RecoverStage():
            return True
        case QuantizeStage():
            return stage.method != "round" or stage.scale_search


def fits_to_inputs(stage: AnyStage) -> bool:
    """Whether a stage fits weights to what they receive, for which pads are not text."""
    match stage:
        case PruneStage():
            return stage.score != "activation" or stage.update != "none"
        case PruneHeadsStage():
            return True
        case SvdStage() | QuantizeStage():
            return needs_calibration(stage)
        case RecoverStage():
            return False  # it masks them


def needs_sensitivity(stage: AnyStage) -> bool:
    """Whether a stage decides by expected loss, and so needs a walk over the source."""
    match stage:
        case SvdStage():
            return stage.objective == "loss"
        case PruneStage():
            return stage.layer_ratios == "loss"
        case PruneHeadsStage():
            return True
        case _:
            return False

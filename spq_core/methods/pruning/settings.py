"""What a recipe says about the pruning of MLPs. Free of torch."""

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from spq_core.estimated_range import Range, exactly
from spq_core.formats.profiles.profile import Profile
from spq_core.methods.pruning.ratios import neurons_kept
from spq_core.methods.settings import AUTO, Kept, PlannedPart, StageSettings, Toy
from spq_core.models.shapes import ModelShapes

MEAN_RATIO = 0.566
"""Mean of the paper's pruning ratios over their maximum (SmolLM2-135M)."""
TOY_RATIO = 0.1


class PruneSettings(StageSettings):
    """Remove MLP neurons, with or without an update of the weights that remain.

    The defaults are the paper's (arXiv:2602.18420): mean absolute activation, more in quiet layers,
    no update.
    """

    outcome: ClassVar[str] = "MLPs lost neurons"
    reports_parts: ClassVar[bool] = True

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
        if self.score == "activation" and (self.is_auto or self.layer_ratios == "loss"):
            raise ValueError(
                "max_ratio auto and layer_ratios loss need a score that looks at outputs: "
                "obs, flap or wanda"
            )
        if self.min_ratio and (self.is_auto or self.layer_ratios != "activation"):
            raise ValueError("min_ratio is for layer_ratios activation only")
        if isinstance(self.max_ratio, str):
            return self
        if self.min_ratio > self.max_ratio:
            raise ValueError(f"min_ratio {self.min_ratio} is above max_ratio {self.max_ratio}")
        return self

    @property
    def is_auto(self) -> bool:
        """Whether numbers of neurons follow from the target."""
        return self.max_ratio == AUTO

    @property
    def removes_weights(self) -> bool:
        """Rows before the neurons, and columns behind them."""
        return True

    @property
    def needs_calibration(self) -> bool:
        """Every score looks at activations."""
        return True

    @property
    def fits_to_inputs(self) -> bool:
        """Mean activations alone may count pads, as the paper's do."""
        return self.score != "activation" or self.update != "none"

    @property
    def needs_sensitivity(self) -> bool:
        """Whether neurons compete by expected loss."""
        return self.layer_ratios == "loss"

    @property
    def planned(self) -> PlannedPart | None:
        """Numbers of neurons, unless ratios follow from activations."""
        return "neurons" if self.is_auto or self.layer_ratios == "loss" else None

    @property
    def removed_share(self) -> float | None:
        """Of all the model's neurons."""
        if self.layer_ratios != "loss" or isinstance(self.max_ratio, str):
            return None
        return self.max_ratio

    def order_error(self, before: Sequence[StageSettings], after: Sequence[StageSettings]) -> str:
        """An update changes weights."""
        del after
        if self.update != "none" and any(stage.quantizes for stage in before):
            return "prune updates weights, which are codes by then; put it before quantize"
        return ""

    def profile_error(self, profile: Profile) -> str:
        """A configuration has one width for all MLPs."""
        equal = self.layer_ratios == "uniform" and not self.is_auto
        return (
            ""
            if equal or not profile.equal_layers
            else "all MLPs have one width there; set layer_ratios: uniform"
        )

    def kept(self, shapes: ModelShapes, profile: Profile) -> Kept:
        """Counted, unless ratios follow from activations."""
        if isinstance(self.max_ratio, str):
            return Kept()
        if self.layer_ratios != "activation":
            width = next(iter(shapes.layers))[shapes.family.mlp_out].n_in
            return Kept(
                mlp=exactly(neurons_kept(width, self.max_ratio, profile.width_multiple) / width)
            )
        mean = self.min_ratio + MEAN_RATIO * (self.max_ratio - self.min_ratio)
        return Kept(mlp=Range(1 - self.max_ratio, 1 - mean, 1 - self.min_ratio))

    def for_preflight(self, toy: Toy, *, fixed: bool) -> Self:
        """With a share of the neurons where there is no target."""
        del toy
        return self.model_copy(update={"max_ratio": TOY_RATIO} if fixed and self.is_auto else {})

"""What a recipe says about learned spectra. Free of torch."""

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from spq_core.estimated_range import Range
from spq_core.formats.profiles.profile import Profile
from spq_core.methods.pairs import PairSettings
from spq_core.methods.settings import Kept, StageSettings, Toy
from spq_core.methods.training.settings import TrainedSettings
from spq_core.models.shapes import ModelShapes

LEAST_KEPT = 0.9
"""Of what was asked for: matrices become pairs in whole ranks."""
MARGIN = 1.02


class SpectrumSettings(PairSettings, TrainedSettings):
    """Learn which singular directions of projections are worth keeping, and cut the others.

    Scores of all directions are learned on the whole model, for all its matrices together (ACIP, arXiv:2502.01717; SoCo,
    arXiv:2502.15092). A matrix whose pair would not be smaller stays whole.
    """

    layer_copies: ClassVar[float] = 12.0

    outcome: ClassVar[str] = "matrices became pairs of learned directions"

    type: Literal["spectrum"]
    method: Literal["acip", "soco", "largest"] = "acip"
    """`acip`: masks that a rising L1 penalty closes one by one, and never opens again; the order in which they close orders all
    directions. `soco`: factors that rescale singular values; some return, and the rest is cut by factor. `largest`: no learning of
    directions, the largest singular values over their matrix's norm stay, and adapters train as long: the control of both."""
    keep: Annotated[float, Field(gt=0.0, le=1.0)] = 0.8
    """Share of the projections' parameters that stays."""
    modules: Literal["attention", "mlp", "all"] = "all"
    """Whose projections may become pairs."""
    any_size: bool = False
    """Store all directions and their order beside the weights, so that `spq resize` makes another size without training."""
    reach: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.4
    """With `acip`, the share of parameters at which masks stop closing."""
    settle: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.25
    """Share of the steps, the last ones, in which the directions stand and adapters alone train. With `soco`, those that drive
    factors apart: to zero, or away from it."""
    adapter_rank: Annotated[int, Field(ge=0, le=256)] = 0
    """Of low-rank adapters that train beside the directions, and become columns of the pairs; 0 for none."""
    alpha: Annotated[float, Field(gt=0.0, le=4096.0)] = 16.0
    """Adapters enter with alpha / adapter_rank."""
    mask_rate: Annotated[float, Field(gt=0.0, le=1.0)] = 0.05
    """Learning rate of masks and factors, where 1 is what they begin at: the inverse of the least number of steps to close one."""
    penalty_growth: Annotated[float, Field(ge=1.0, le=10.0)] = 1.05
    """By how much the penalty grows each step. It begins at the tenth percentile of the gradients of the text's loss."""

    @model_validator(mode="after")
    def _something_to_train(self) -> Self:
        if self.method == "largest" and not self.adapter_rank:
            raise ValueError(
                "method largest trains adapters alone; give adapter_rank, or take a stage of type svd"
            )
        if self.weight_decay and self.method != "largest":
            raise ValueError(
                f"weight_decay would shrink the masks of method {self.method}, too; leave it 0"
            )
        if self.any_size and self.method == "soco":
            raise ValueError(
                "any_size needs an order of all directions, which method soco does not give; use acip"
            )
        return self

    def order_error(self, before: Sequence[StageSettings], after: Sequence[StageSettings]) -> str:
        """Directions are those of whole matrices in floating point."""
        if late := [stage.type for stage in after if stage.type in {"prune", "prune-heads", "svd"}]:
            return f"{late[0]} must come before spectrum, or be left out"
        if any(stage.type == "svd" for stage in before):
            return "svd and spectrum both make pairs of the same matrices; leave one out"
        if any(stage.quantizes for stage in before):
            return "spectrum changes floats; quantize must come behind it"
        if self.any_size and after:
            return f"any_size stores what spectrum made; leave out {after[0].type} behind it"
        return ""

    @property
    def added_bytes_error(self) -> str:
        """Its own `keep` says how much stays."""
        return "spectrum has its own size, keep; leave out the target"

    def kept(self, shapes: ModelShapes, profile: Profile) -> Kept:
        """As `keep` says, for all projections together."""
        del shapes, profile
        share = Range(LEAST_KEPT * self.keep, self.keep, min(1.0, MARGIN * self.keep))
        return self.kept_of_modules(share)

    def seconds(self, shapes: ModelShapes) -> float:
        """Its steps, through twice as many products; and two decompositions of each matrix."""
        return 1.5 * super().seconds(shapes) + 2 * self.decomposing_seconds(shapes)

    def for_preflight(self, toy: Toy, *, fixed: bool) -> Self:
        """Two short steps."""
        small = super().for_preflight(toy, fixed=fixed)
        return small.model_copy(update={"adapter_rank": min(self.adapter_rank, toy.rank)})

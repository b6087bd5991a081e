"""What a recipe says about the SVD of projections. Free of torch."""

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from spq_core.estimated_range import Range, between
from spq_core.formats.profiles.profile import Profile
from spq_core.methods.pairs import PairSettings
from spq_core.methods.settings import AUTO, Kept, PlannedPart, StageSettings, Toy
from spq_core.models.shapes import ModelShapes

KEPT_BY_VARIANCE = ((0.0, 0.05), (0.84, 0.608), (0.90, 0.750), (0.96, 0.948), (1.0, 1.0))
"""Share of attention's weights that stays when matrices become pairs (SmolLM2-135M); those of MLPs fall more slowly, so more may stay."""
LEAST_KEPT = 0.5
"""Of what stays there, in a model whose spectra fall faster."""
TOY_VARIANCE = 0.9


class SvdSettings(PairSettings):
    """Replace projections by low-rank pairs, as published those of attention.

    With `objective: weight` as published (arXiv:2602.18420, section on SVD); with `output` the
    error of the projection's output is minimised instead of that of its weights
    (SVD-LLM, arXiv:2403.07378).
    """

    earlier_names: ClassVar[Mapping[str, str]] = {"least_share": "min_factorized_share"}
    layer_copies: ClassVar[float] = 7.8

    outcome: ClassVar[str] = "matrices became pairs of low rank"

    type: Literal["svd"]
    objective: Literal["weight", "output", "loss"] = "weight"
    """`loss`: of the output, each row counting by how much the loss depends on it."""
    variance: Annotated[float, Field(gt=0.0, le=1.0)] | Literal["auto"] = 0.96
    """Share of the squared singular values to keep: of the weight, or of the output. `auto` lets
    the target choose a rank per matrix, by loss per byte."""
    rank_rule: Literal["objective", "weight"] = "objective"
    """Whose spectrum `variance` is read off. `weight` with another objective keeps the paper's ranks
    and skips, and spends them better."""
    min_factorized_share: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """With `variance: auto`, the share of projections that become pairs even where their bytes would
    be better spent whole: those that lose least by it."""
    singular_values: Literal["up", "split", "down"] = "up"
    """Which factor carries the singular values: `up` is the paper's; `down` costs least when each
    row is rounded with a scale of its own."""

    @model_validator(mode="after")
    def _share_where_ranks_are_open(self) -> Self:
        if self.min_factorized_share and not self.is_auto:
            raise ValueError("min_factorized_share needs variance auto")
        return self

    @property
    def is_auto(self) -> bool:
        """Whether ranks follow from the target."""
        return self.variance == AUTO

    @property
    def needs_calibration(self) -> bool:
        """Whether factors follow the outputs."""
        return self.objective != "weight"

    @property
    def needs_sensitivity(self) -> bool:
        """Whether outputs count by the loss that depends on them."""
        return self.objective == "loss"

    @property
    def planned(self) -> PlannedPart | None:
        """Ranks, if they are open."""
        return "ranks" if self.is_auto else None

    def order_error(self, before: Sequence[StageSettings], after: Sequence[StageSettings]) -> str:
        """Heads and neurons are removed from whole matrices."""
        del before
        cut = {"prune-heads": self.modules != "mlp", "prune": self.modules != "attention"}
        late = [stage.type for stage in after if cut.get(stage.type)]
        return f"{late[0]} must come before svd" if late else ""

    def kept(self, shapes: ModelShapes, profile: Profile) -> Kept:
        """By how fast spectra fall."""
        del shapes, profile
        if isinstance(self.variance, str):
            return Kept()
        expected = between(KEPT_BY_VARIANCE, self.variance)
        return self.kept_of_modules(Range(LEAST_KEPT * expected, expected, 1.0))

    def seconds(self, shapes: ModelShapes) -> float:
        """One decomposition of each matrix."""
        return self.decomposing_seconds(shapes)

    def for_preflight(self, toy: Toy, *, fixed: bool) -> Self:
        """With a share of the variance where there is no target."""
        del toy
        return self.model_copy(update={"variance": TOY_VARIANCE} if fixed and self.is_auto else {})

"""What a recipe says about the pruning of attention heads. Free of torch."""

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field

from spq_core.estimated_range import exactly
from spq_core.formats.profiles.profile import Profile
from spq_core.methods.settings import AUTO, Kept, PlannedPart, StageSettings, Toy
from spq_core.models.family import Family
from spq_core.models.shapes import ModelShapes

TOY_RATIO = 0.3


class PruneHeadsSettings(StageSettings):
    """Remove attention heads in whole groups: a key-value head with the query heads that read it.

    So a layer's ratio of query to key-value heads stays, which grouped-query attention needs; with
    one query head per key-value head a group is a head.
    """

    outcome: ClassVar[str] = "attention layers lost heads"
    reports_parts: ClassVar[bool] = True

    type: Literal["prune-heads"]
    ratio: Annotated[float, Field(ge=0.0, lt=1.0)] | Literal["auto"] = 0.05
    """Share of the model's groups to remove, those of least expected loss first; each layer keeps
    one. `auto` lets the target choose, by loss per byte."""
    update: Literal["none", "bias", "least_squares"] = "least_squares"
    """What is done to the output projection; as for MLP neurons."""

    @property
    def is_auto(self) -> bool:
        """Whether numbers of groups follow from the target."""
        return self.ratio == AUTO

    @property
    def removes_weights(self) -> bool:
        """Of all four projections."""
        return True

    @property
    def needs_calibration(self) -> bool:
        """Groups are scored by what outputs lose."""
        return True

    @property
    def needs_sensitivity(self) -> bool:
        """Groups compete by expected loss."""
        return True

    @property
    def planned(self) -> PlannedPart | None:
        """How many groups each layer keeps."""
        return "heads"

    @property
    def removed_share(self) -> float | None:
        """Of all the model's groups."""
        return None if isinstance(self.ratio, str) else self.ratio

    def order_error(self, before: Sequence[StageSettings], after: Sequence[StageSettings]) -> str:
        """Whole matrices are cut, and the output projection is fitted."""
        if any(stage.quantizes for stage in before):
            return "prune-heads updates weights, which are codes by then; put it before quantize"
        if any(stage.type == "svd" and stage.is_auto for stage in (*before, *after)):
            return "variance auto and prune-heads cannot share a matrix; use one of them"
        return ""

    def profile_error(self, profile: Profile) -> str:
        """A configuration has one number of heads."""
        if not profile.equal_layers:
            return ""
        return "layers with different numbers of heads have no form in a configuration"

    def family_error(self, family: Family) -> str:
        """Layers must take the number of their heads from their matrices."""
        if family.head_groups:
            return ""
        return (
            f"prune-heads does not support {family.name} models, whose layers fix the number of heads; leave the "
            "stage out"
        )

    def kept(self, shapes: ModelShapes, profile: Profile) -> Kept:
        """Counted; each layer keeps a group."""
        del profile
        if isinstance(self.ratio, str):
            return Kept()
        groups = len(shapes.layers) * shapes.kv_heads
        gone = min(round(self.ratio * groups), groups - len(shapes.layers)) / groups
        return Kept(attention=exactly(1 - gone))

    def for_preflight(self, toy: Toy, *, fixed: bool) -> Self:
        """With a share of the groups where there is no target."""
        del toy
        return self.model_copy(update={"ratio": TOY_RATIO} if fixed and self.is_auto else {})

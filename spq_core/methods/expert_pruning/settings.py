"""What a recipe says about the pruning of experts. Free of torch."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from spq_core.estimated_range import exactly
from spq_core.formats.profiles.profile import Profile
from spq_core.methods.settings import Kept, StageSettings
from spq_core.models.architectures import EXPERT_COUNTS
from spq_core.models.family import Family
from spq_core.models.shapes import ModelShapes

GROUP_COUNTS = ("n_group", "num_expert_group", "n_expert_groups")
"""Groups of experts that a router chooses among first; they keep equal sizes."""


class PruneExpertsSettings(StageSettings):
    """Remove whole experts of a mixture, as many in each layer, with their rows of the router.

    `reap` scores an expert by the mean, over the tokens that are routed to it, of the router's weight times the norm of
    what the expert makes of them (Lasby et al. 2025, arXiv:2510.13999, equation 9).
    """

    outcome: ClassVar[str] = "layers lost experts"

    type: Literal["prune-experts"]
    ratio: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.25
    """Share of each layer's experts to remove, rounded down to whole experts (of each of the router's groups)."""
    score: Literal["reap", "frequency", "random"] = "reap"
    """`frequency` counts routed tokens; `random` is there for comparison."""

    @property
    def removes_weights(self) -> bool:
        """Of experts and routers."""
        return True

    @property
    def needs_calibration(self) -> bool:
        """Experts are scored by what they make of text."""
        return True

    @property
    def target_error(self) -> str:
        """Experts that go have been planned for."""
        return "prune-experts removes experts that a target has counted on; give bits or an error to quantize by instead"

    def order_error(self, before: Sequence[StageSettings], after: Sequence[StageSettings]) -> str:
        """Scores are those of experts as they are."""
        del after
        if any(stage.quantizes for stage in before):
            return "prune-experts scores experts as they are in the source; put it before quantize"
        return ""

    def family_error(self, family: Family) -> str:
        """There must be some."""
        if family.experts:
            return ""
        return f"prune-experts: {family.name} models have no experts; leave the stage out"

    def kept_experts(self, config: Mapping[str, Any]) -> tuple[str, int]:
        """How a configuration calls the number of experts, and how many stay.

        Raises:
            ValueError: it has no such number.
        """
        name = next((one for one in EXPERT_COUNTS if config.get(one)), None)
        if name is None:
            raise ValueError(
                f"no number of experts in the configuration: {', '.join(EXPERT_COUNTS)}"
            )
        count = int(config[name])
        groups = next((int(config[one]) for one in GROUP_COUNTS if config.get(one)), 1)
        each = count // groups
        return name, groups * (each - int(self.ratio * each))

    def changed_config(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The number of experts."""
        name, kept = self.kept_experts(config)
        return {name: kept}

    def kept(self, shapes: ModelShapes, profile: Profile) -> Kept:
        """All but the share, of the experts' part of the weights."""
        del profile
        inside = tuple(f"{path}." for path in shapes.family.experts)
        of_experts = sum(
            matrix.elements
            for layer in shapes.layers
            for name, matrix in layer.items()
            if name.startswith(inside)
        )
        attention = set(shapes.family.attention)
        others = sum(
            matrix.elements
            for layer in shapes.layers
            for name, matrix in layer.items()
            if name not in attention
        )
        return Kept(mlp=exactly(1 - self.ratio * of_experts / max(1, others)))

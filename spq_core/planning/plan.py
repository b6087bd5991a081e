"""What is decided before a run."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from spq_core.planning.budget import Budget
from spq_core.planning.structure import Structure


@dataclass(frozen=True, slots=True)
class Plan:
    """What is decided before the run."""

    structure: Structure = field(default_factory=Structure)
    output_weights: Mapping[str, Tensor] = field(default_factory=dict)
    """How much each output of each matrix counts, for stages that change shapes."""
    budget: Budget | None = None
    """For a stage that quantizes by entropy."""

    def weights_of(self, names: Collection[str]) -> dict[str, Tensor]:
        """Output weights of the matrices with these names within their layer."""
        return {
            full: part.clone()  # stages cut theirs, each on its own
            for full, part in self.output_weights.items()
            if any(full.endswith(f".{name}") for name in names)
        }

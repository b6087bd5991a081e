"""What a recipe says about a stage that makes low-rank pairs of projections. Free of torch."""

from typing import Literal

from spq_core.estimated_range import Range
from spq_core.formats.profiles.profile import Profile
from spq_core.methods.settings import ALL, Kept, StageSettings
from spq_core.models.family import Family
from spq_core.models.shapes import ModelShapes

FACTORIZED_PER_SECOND = 1e9
"""Cubed short sides of matrices that are decomposed."""


class PairSettings(StageSettings):
    """Replaces projections by low-rank pairs."""

    modules: Literal["attention", "mlp", "all"] = "attention"
    """Whose projections may become pairs."""

    @property
    def removes_weights(self) -> bool:
        """Pairs have fewer weights than the matrix."""
        return True

    def profile_error(self, profile: Profile) -> str:
        """Pairs are a form of their own."""
        if "low_rank" in profile.forms:
            return ""
        return f"pairs of low-rank matrices have no form in {profile.format_name}"

    def matrices(self, family: Family) -> tuple[str, ...]:
        """Those of a decoder layer that may become pairs."""
        return (
            *(family.attention if self.modules != "mlp" else ()),
            *(family.mlp if self.modules != "attention" else ()),
        )

    def kept_of_modules(self, share: Range) -> Kept:
        """So much of the weights of those that may become pairs."""
        return Kept(
            attention=ALL if self.modules == "mlp" else share,
            mlp=ALL if self.modules == "attention" else share,
        )

    def decomposing_seconds(self, shapes: ModelShapes) -> float:
        """One decomposition of each."""
        sides = sum(
            min(matrix.n_out, matrix.n_in) ** 3
            for layer in shapes.layers
            for name, matrix in layer.items()
            if name in self.matrices(shapes.family)
        )
        return sides / FACTORIZED_PER_SECOND

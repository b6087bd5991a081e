"""What a recipe says about Double Compression. Free of torch."""

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from spq_core.formats.profiles.profile import Profile
from spq_core.methods.settings import StageSettings
from spq_core.models.shapes import Matrix, ModelShapes

BITS: dict[str, tuple[float, float]] = {"matrix": (4.6, 4.9), "row": (6.6, 7.2)}
"""Bits a code takes in layers, and in tables (SmolLM2-135M)."""
PRUNED_BITS = 2.0
"""Less for a share of 1 that is pruned."""
SECONDS = 0.35e-6
"""Per weight of a layer: eleven α tried on some rows, and coding."""


class DoubleCompressionSettings(StageSettings):
    """Make 8-bit codes that compress well, and compress them (Double Compression, arXiv:2502.15443).

    Columns with strong inputs are scaled up before rounding, which makes weights uneven and most codes small; codes may be pruned by what they
    are multiplied by; what is left is stored by entropy, and may stay so in memory.
    """

    outcome: ClassVar[str] = "matrices became compressed 8-bit codes"

    type: Literal["double-compression"]
    alpha: Annotated[float, Field(ge=0.0, le=1.0)] | Literal["auto"] = "auto"
    """Column j is scaled by max|x_j|^alpha, to the nearest power of two, so that folding it into the norm or the matrix before is exact. `auto`: of 0, 0.1, …, 1, for matrices that
    share an input, what takes least bits with an error of at most `most_error`."""
    scales: Literal["matrix", "row"] = "matrix"
    """How many scales a matrix has; with one, codes are smaller, and their error larger."""
    most_error: Annotated[float, Field(gt=0.0, le=1.0)] = 0.002
    """With `alpha: auto`: squared error of each matrix's outputs, as a share of their squares. Where no α stays below, the one with least error."""
    pruned: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of a layer's codes that are zero in the end, of each matrix."""
    prune_by: Literal["score", "rate"] = "score"
    """Which codes go first: `score`, those with the least max|x_j| · |w_ij|, as published; `rate`, those with the least squared error for each
    bit that they save."""
    embedding: bool = True
    """Code the token embedding too, without scaling or pruning; a tied head then shares its codes."""

    @property
    def quantizes(self) -> bool:
        """To 8 bits."""
        return True

    @property
    def needs_calibration(self) -> bool:
        """Columns are scaled by their inputs."""
        return True

    def order_error(self, before: Sequence[StageSettings], after: Sequence[StageSettings]) -> str:
        """Weights are needed, and codes stay."""
        if any(stage.quantizes for stage in before) or any(stage.quantizes for stage in after):
            return "double-compression quantizes; leave out the other stage that does"
        if not all(stage.leaves_codes for stage in after):
            return "double-compression must be the last stage, unless only recover with adapters kept comes after it"
        return ""

    def profile_error(self, profile: Profile) -> str:
        """Codes by entropy are our own form."""
        if "range_coded" in profile.forms:
            return ""
        return f"codes stored by entropy have no form in {profile.format_name}"

    def matrix_bytes(self, matrix: Matrix, shapes: ModelShapes, profile: Profile) -> float:
        """As SmolLM2's."""
        del shapes, profile
        bits = BITS[self.scales][0] - PRUNED_BITS * self.pruned
        return matrix.elements * bits / 8 + matrix.n_in + matrix.n_out

    def tables_bytes(self, shapes: ModelShapes, profile: Profile) -> float | None:
        """Of the embedding, and of a head of its own."""
        del profile
        tables = [shapes.embedding] if shapes.head is None else [shapes.embedding, shapes.head]
        coded = sum(table.elements for table in tables) * BITS[self.scales][1] / 8
        if self.embedding:
            return coded
        plain = shapes.embedding.elements * shapes.item_bytes
        return plain if shapes.head is None else plain + coded / 2

    def seconds(self, shapes: ModelShapes) -> float:
        """Of choosing, rounding and coding."""
        return SECONDS * shapes.elements

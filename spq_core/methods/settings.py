"""What a recipe says about one stage, and what may be asked of it before any weight is read.

Each method derives its settings from `StageSettings` and answers only what is not as here: a method that
changes weights in place, needs no text and has no rules of order answers nothing. Free of torch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

from spq_core.documents import Document
from spq_core.estimated_range import Range
from spq_core.formats.profiles.profile import Profile
from spq_core.models.family import Family
from spq_core.models.shapes import Matrix, ModelShapes

AUTO = "auto"
"""Leaves a number to the recipe's target: what is worth its bytes stays."""
PlannedPart = Literal["ranks", "neurons", "heads", "widths"]
ALL = Range(1.0, 1.0, 1.0)


@dataclass(frozen=True, slots=True)
class Kept:
    """Shares of weights that a stage leaves."""

    attention: Range = ALL
    mlp: Range = ALL


@dataclass(frozen=True, slots=True)
class Toy:
    """Sizes of the small model that a recipe is tried on first."""

    tokens: int
    """Of a sample."""
    rank: int
    """What no rank may be above."""
    group: int
    """Columns that a group has at most."""


class StageSettings(Document):
    """One stage of a recipe."""

    type: str
    """Its name in recipes and reports."""

    outcome: ClassVar[str] = "matrices were changed"
    """How the model card goes on after "n of m"."""
    reports_parts: ClassVar[bool] = False
    """Whether the matrices of an attention or an MLP report one thing, and count as one."""
    layer_copies: ClassVar[float] = 6.2
    """Peak memory at a decoder layer, in sizes of the layer (measured)."""

    # Order and combination

    @property
    def is_auto(self) -> bool:
        """Whether the recipe's target decides how much goes."""
        return False

    @property
    def quantizes(self) -> bool:
        """Whether codes stand in place of weights afterwards."""
        return False

    @property
    def removes_weights(self) -> bool:
        """Whether matrices become smaller."""
        return False

    @property
    def leaves_codes(self) -> bool:
        """Whether codes of whatever form stay as they are."""
        return False

    @property
    def learns(self) -> bool:
        """Whether it works on the whole model between two walks, on rows of text of its own."""
        return False

    def order_error(
        self, before: "Sequence[StageSettings]", after: "Sequence[StageSettings]"
    ) -> str:
        """Why it cannot stand between these stages; empty if it can."""
        del before, after
        return ""

    @property
    def target_error(self) -> str:
        """Why no target can count on what it leaves; empty if one can."""
        return ""

    @property
    def added_bytes_error(self) -> str:
        """Why a target in bytes has no room for what it adds; empty if it adds nothing."""
        return ""

    # What it needs

    @property
    def needs_calibration(self) -> bool:
        """Whether it looks at calibration text."""
        return False

    @property
    def fits_to_inputs(self) -> bool:
        """Whether it fits weights to what they receive, for which pads are not text."""
        return self.needs_calibration

    @property
    def passes_samples(self) -> bool:
        """Whether calibration samples go through the layers for it."""
        return self.needs_calibration

    @property
    def needs_sensitivity(self) -> bool:
        """Whether it decides by expected loss, and so needs a walk over the source."""
        return False

    @property
    def planned(self) -> PlannedPart | None:
        """What is decided for it, matrix by matrix or layer by layer, before it is applied."""
        return None

    @property
    def removed_share(self) -> float | None:
        """The share of the model's units to remove, where the plan only chooses which."""
        return None

    # What it cannot be done to

    def profile_error(self, profile: Profile) -> str:
        """Why artifacts of a profile cannot hold what it makes; empty if they can."""
        del profile
        return ""

    def family_error(self, family: Family) -> str:
        """Why no model of a family can become this; empty if one can."""
        del family
        return ""

    def shapes_error(self, shapes: ModelShapes, profile: Profile) -> str:
        """Why a model with these matrices cannot become this; empty if it can."""
        del shapes, profile
        return ""

    # What it changes beside weights

    def changed_config(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Entries of the text part's configuration that are others afterwards.

        Args:
            config: as it is before.
        """
        del config
        return {}

    # What it costs

    def kept(self, shapes: ModelShapes, profile: Profile) -> Kept:
        """Shares of the model's weights that stay."""
        del shapes, profile
        return Kept()

    def matrix_bytes(self, matrix: Matrix, shapes: ModelShapes, profile: Profile) -> float | None:
        """Stored bytes of a decoder layer's matrix in the form it makes; None where weights stay weights."""
        del matrix, shapes, profile
        return None

    def tables_bytes(self, shapes: ModelShapes, profile: Profile) -> float | None:
        """Stored bytes of embedding and head; None where they stay as they are."""
        del shapes, profile
        return None

    def added_bytes(self, shapes: ModelShapes) -> float:
        """Bytes that the artifact gets on top."""
        del shapes
        return 0.0

    def seconds(self, shapes: ModelShapes) -> float:
        """Seconds on two cores, without passing samples through the layers."""
        del shapes
        return 0.0

    # Trying it

    def for_preflight(self, toy: Toy, *, fixed: bool) -> Self:
        """The same on a toy model.

        Args:
            fixed: there is no target, so amounts that it would set must be numbers.
        """
        del toy, fixed
        return self

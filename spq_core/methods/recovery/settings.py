"""What a recipe says about recovery. Free of torch."""

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from spq_core.formats.profiles.profile import Profile
from spq_core.methods.settings import StageSettings, Toy
from spq_core.methods.training.settings import TrainedSettings
from spq_core.models.shapes import ModelShapes


class RecoverSettings(TrainedSettings):
    """Train low-rank adapters (LoRA, arXiv:2106.09685) on the compressed model for a few steps."""

    outcome: ClassVar[str] = "matrices were trained towards the source"

    type: Literal["recover"]
    adapters: Literal["merged", "kept", "none"] = "merged"
    """`merged`: added to the matrices, which must still be floating-point. `kept`: stored beside
    them, for a recovery behind quantization. `none`: only what `trains` names is trained, which takes no bytes."""
    rank: Annotated[int, Field(ge=1, le=1024)] = 8
    """Of the adapters."""
    alpha: Annotated[float, Field(gt=0.0, le=4096.0)] = 16.0
    """Adapters enter with alpha / rank."""
    trains: tuple[Literal["norms", "embedding"], ...] = ()
    """What is trained besides adapters."""

    @model_validator(mode="after")
    def _something_to_train(self) -> Self:
        if self.adapters == "none" and not self.trains:
            raise ValueError("without adapters nothing is trained; name norms in trains")
        return self

    @property
    def leaves_codes(self) -> bool:
        """Kept adapters stand beside them; norms and embeddings are no codes."""
        return self.adapters != "merged"

    def order_error(self, before: Sequence[StageSettings], after: Sequence[StageSettings]) -> str:
        """Adapters merge into weights, or stay beside what nothing changes any more."""
        if self.adapters == "kept" and after:
            return "recover with adapters kept must be the last stage; use merged to go on from it"
        if self.adapters == "merged" and any(stage.quantizes for stage in before):
            return (
                "adapters cannot be merged into quantized weights; set adapters to kept, "
                "or recover before quantize"
            )
        return ""

    @property
    def added_bytes_error(self) -> str:
        """Kept adapters take bytes of their own."""
        kept = self.adapters == "kept"
        return "a target in bytes leaves no room for kept adapters; merge them" if kept else ""

    def profile_error(self, profile: Profile) -> str:
        """Adapters are merged, or a form of ours."""
        kept = self.adapters == "kept" and "adapted" not in profile.forms
        return "adapters have no form beside quantized weights; merge them" if kept else ""

    def added_bytes(self, shapes: ModelShapes) -> float:
        """Of kept adapters."""
        if self.adapters != "kept":
            return 0.0
        sides = sum(part.n_in + part.n_out for layer in shapes.layers for part in layer.values())
        return float(self.rank * sides * shapes.item_bytes)

    def for_preflight(self, toy: Toy, *, fixed: bool) -> Self:
        """Two short steps."""
        small = super().for_preflight(toy, fixed=fixed)
        return small.model_copy(update={"rank": min(self.rank, toy.rank)})

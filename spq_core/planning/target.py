"""What a recipe's result must come to. Free of torch."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from spq_core.documents import Document

OF_LEVELS = ("fit", "evolution")
"""Allocations that choose one of a few levels for each part."""


class Target(Document):
    """How large the artifact may be, or how far from the source; one of the two."""

    bytes_ratio: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    """Artifact bytes over the source's, with 16 bits a weight at most: float32 sources count half. Towers for images are carried along
    as they are, and are not counted on either side."""
    max_kl: Annotated[float, Field(gt=0.0, le=10.0)] | None = None
    """KL divergence from the source, in nats per token of the calibration dataset; not of what is mixed in."""
    allocation: Literal["loss", "uniform", "pgsvd", "mgaa", "theoretical", "fit", "evolution"] = (
        "loss"
    )
    """How bytes are shared out, as bits or, where nothing is quantized, as ranks. `loss`: by expected loss per byte. For comparison:
    `uniform`, an equal share for all; `pgsvd`, equal relative error for all (arXiv:2510.05544); `mgaa`, by how much an attention
    or MLP turns its input (arXiv:2507.03294); `theoretical`, ranks by the error of truncation (SVD-LLM V2, arXiv:2503.12340). Of widths (`quantize.levels`), ranks or neurons, each one of a few: `fit`, the shortest path in the
    Fisher metric (FITCompress, arXiv:2302.07612); `evolution`, by trying whole models (EvoPress, arXiv:2410.14649)."""
    generations: Annotated[int, Field(ge=1, le=1000)] = 12
    """With allocation `evolution`, how often levels are changed and tried."""

    def bytes_of(self, source_bytes: float, carried: float = 0.0) -> float:
        """What `bytes_ratio` comes to, with what is carried along unchanged; 0 with `max_kl`."""
        return (self.bytes_ratio or 0.0) * (source_bytes - carried) + carried

    @property
    def is_of_levels(self) -> bool:
        """Whether each part gets one of a few levels."""
        return self.allocation in OF_LEVELS

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.bytes_ratio is None) == (self.max_kl is None):
            raise ValueError("give either bytes_ratio or max_kl")
        return self

"""What a run did and measured, as plain values that go to JSON unchanged."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleReport:
    """What one stage did to one matrix."""

    layer: str
    """Full module name, e.g. `model.layers.3.mlp.up_proj`."""
    stage: str
    applied: bool
    reason: str = ""
    """Why the stage left the matrix alone; empty when applied."""
    figures: dict[str, float | int | str] = field(default_factory=dict)
    """Stage-specific: rank, kept neurons, scale mode, relative error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressionReport:
    """One finished compression."""

    recipe: dict[str, Any]
    recipe_sha256: str
    family: str
    source_dtype: str
    source_bytes: int
    """Bytes of the source's weight files and their index."""
    artifact_bytes: int
    """Bytes of the artifact's weight files, index, configuration and manifest."""
    parameters: int
    """Parameters of the source, a tied head counted once."""
    seconds: float
    peak_rss_bytes: int
    """Highest resident memory of the process while it compressed, interpreter included."""
    calibration: dict[str, Any] | None
    modules: tuple[ModuleReport, ...]
    theoretical_rate: float | None = None
    """1 − (bits / 16) (1 − sparsity) over the matrices of decoder layers: without scales, masks and padding. None in reports of
    versions before it was counted."""
    notes: tuple[str, ...] = ()
    """What of the source was left out, and why."""

    @property
    def ratio_to_source(self) -> float:
        """Artifact bytes over the checkpoint's bytes as stored."""
        return self.artifact_bytes / self.source_bytes

    @property
    def ratio_to_fp32(self) -> float:
        """Artifact bytes over four bytes per source parameter."""
        return self.artifact_bytes / (4 * self.parameters)

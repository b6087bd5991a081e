"""What a reader of artifacts can take: a profile, as data. Free of torch.

Methods ask a profile what it holds, never for its name. What is written is in the profile's `writing` module, which is
imported when it is needed:

    store_block(path, block, original, dtype) -> dict[str, Layout]
        Replace a finished block's layers by what is stored; returns the layouts that `original` does not have.
    config(stored: StoredModel) -> dict[str, Any]
        The artifact's config.json.
    finish(folder: Path, stored: StoredModel, source: str, dtype: torch.dtype) -> None
        Of profiles that are a single file: make it of the shards and the other files, and remove the shards.
    require_places(source: Path, skeleton: Skeleton) -> None
        Of such profiles: refuse a model that has no place in the file, before any work.
    metadata_bytes(source: Path, skeleton: Skeleton) -> int
        Of such profiles: what the file takes beside tensors.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """One kind of artifact."""

    name: str
    """In recipes and manifests."""
    format_name: str
    """What messages call its stored form."""
    writing: str
    """The module that writes it."""
    loading: str
    """Markdown: how it is loaded, for the model card."""
    card: Mapping[str, Any]
    """What hubs and their buttons look for in the head of the model card."""
    forms: frozenset[str]
    """Kinds of layouts that it holds."""
    bits: frozenset[int]
    """Widths of packed codes that its readers have kernels for."""
    equal_layers: bool = False
    """Whether all decoder layers must have one shape."""
    tables: bool = True
    """Whether embedding and head may be stored in codes."""
    zero_points: bool = True
    """Whether grids may be asymmetric."""
    whole_groups: bool = False
    """Whether a group's columns must divide the row."""
    input_major: bool = True
    """Whether models whose matrices are stored transposed can be written."""
    experts: bool = True
    """Whether models with experts can be written."""
    width_multiple: int = 1
    """Of neurons: what kernels of its readers want, and what tensor parallelism can divide."""
    scale_bytes: int | None = None
    """Of a group's scale and zero point; None where scales have the model's dtype."""
    single_file: bool = False
    """Whether weights end up in one file of the readers' own format."""
    refused: Callable[[Mapping[str, Any]], str] = lambda _config: ""
    """Why its readers cannot run a model with this configuration of its text part; empty if they can."""
    towers: bool = True
    """Whether models with towers for other inputs than text can be written."""
    widened_by_readers: bool = False
    """Whether readers widen codes when they load them."""

    def error(self, reason: str) -> str:
        """A refusal that says which profile has no such limit."""
        other = "" if self.name == "compact" else " (profile compact has no such limit)"
        return f"profile {self.name}: {reason}{other}"

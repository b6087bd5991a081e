"""A model that is never whole in memory."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from spq_core.models.skeleton import Skeleton


@dataclass(frozen=True, slots=True)
class BlockedModel:
    """A model whose parts are loaded each time they are asked for."""

    skeleton: Skeleton
    layer: Callable[[int], nn.Module]
    """Decoder layer by index."""
    rest: Callable[[], PreTrainedModel]
    """Embedding, final norm and head."""

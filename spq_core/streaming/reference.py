"""A few tokens that go through the finished blocks while they are in memory.

What comes out is what a stored and loaded artifact must say again. As the embedding is compressed
last, the tokens enter the first layer as the source's embedding has them, and the result's own
embedding is noted beside that.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from spq_core.formats.slicing import is_float
from spq_core.models.skeleton import Skeleton
from spq_core.streaming.head import Head
from spq_core.streaming.stream import CalibrationStream, begin_stream, widen_small_parts

TOKENS = 24
"""More rows than the decoding kernels take, so that the result is exact in float32."""


@dataclass(frozen=True, slots=True)
class ReferenceActivations:
    """Random tokens on their way."""

    ids: Tensor
    entered: Tensor
    """What the first layer receives."""
    stream: CalibrationStream

    def advance(self, index: int, layer: nn.Module) -> None:
        """Send the tokens through a finished decoder layer."""
        self.stream.advance(index, layer)

    @torch.no_grad()
    def write(self, file: Path, skeleton: Skeleton, rest: PreTrainedModel) -> None:
        """Apply the finished head and note all that a loaded artifact is compared with."""
        widen_small_parts(rest, skeleton)
        embedding = rest.get_submodule(skeleton.embedding_path)
        tensors = {
            "ids": self.ids,
            "entered": self.entered,
            "embedded": embedding(self.ids).float(),
            "logits": self._logits(skeleton, rest),
        }
        save_file(
            {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
            file,
            metadata={"first_layer": skeleton.layer_path(0)},
        )

    def _logits(self, skeleton: Skeleton, rest: PreTrainedModel) -> Tensor:
        if is_float(rest.get_submodule(skeleton.head_path)):  # in its stored dtype
            states = self.stream.at_head(skeleton, rest, [0])[0]
            return Head(rest, skeleton).logits(states).values
        return self.stream.through_rest(skeleton, rest, [0])[0].float()


def begin_reference(
    skeleton: Skeleton, rest: PreTrainedModel, states: Tensor | None = None
) -> ReferenceActivations:
    """Embed the tokens.

    Args:
        rest: the source without its layers; it is changed.
        states: where the tokens have come to, in a run that goes on.
    """
    generator = torch.Generator().manual_seed(0)
    vocabulary = int(skeleton.text_config.vocab_size)
    ids = torch.randint(vocabulary, (1, TOKENS), generator=generator)
    stream = begin_stream(skeleton, rest, ids)
    entered = stream.hidden[0].clone()
    if states is not None:
        stream.hidden[0] = states
    return ReferenceActivations(ids.to(entered.device), entered, stream)

"""Outputs of a part of a block that no longer changes, so that they are computed once a batch.

While the MLP of a layer is compressed, samples pass the layer's attention three times, the same each time.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor, nn


class _Seen(NamedTuple):
    """A tensor of the block as it was. Holding it, and its memory, keeps both from being used again."""

    name: str
    tensor: Tensor
    memory: Tensor
    version: int

    def is_as(self, other: "_Seen") -> bool:
        """Whether nobody has written to it, or put another one in its place."""
        same = self.name == other.name and self.tensor is other.tensor
        unmoved = self.memory.data_ptr() == other.memory.data_ptr()
        return same and unmoved and self.version == other.version


def _first(output: Any) -> Any:
    """Without attention weights, of which there are tokens² and which no layer reads."""
    return (output[0], *(None for _ in output[1:])) if isinstance(output, tuple) else output


@dataclass(slots=True)
class Settled:
    """What one module of a block gave for each batch, as long as nothing in front of `behind` changes."""

    block: nn.Module
    module: str
    behind: tuple[str, ...]
    """Names of matrices that data meets after the module: they may change."""
    kept: dict[int, Any] = field(default_factory=dict)
    """By the first sample of the batch."""
    state: list[_Seen] = field(default_factory=list)

    @contextmanager
    def replayed(self, batch: Sequence[int]) -> Iterator[None]:
        """Within the block, let the module answer for this batch as it did before."""
        found = self.block.get_submodule(self.module)
        state = self._state()
        known = len(state) == len(self.state)
        if not (known and all(map(_Seen.is_as, state, self.state))):
            self.kept.clear()
            self.state = state
        compute = found.forward

        def answer(*positional: Any, **named: Any) -> Any:
            if batch[0] not in self.kept:
                self.kept[batch[0]] = _first(compute(*positional, **named))
            return self.kept[batch[0]]

        found.forward = answer
        try:
            yield
        finally:
            del found.forward  # the class has its own

    def _state(self) -> list[_Seen]:
        return [
            _Seen(name, tensor, tensor.data, tensor._version)  # noqa: SLF001
            for part in (self.block.named_parameters(), self.block.named_buffers())
            for name, tensor in part
            if not name.startswith(self.behind)
        ]

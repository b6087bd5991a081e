"""What parts of a block give or receive, kept as long as it cannot change, so that it is computed once a batch.

While the MLP of a layer is compressed, samples pass the layer's attention three times, the same each time;
and the last time they pass the MLP, what its last matrix receives has been measured just before.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor, nn

KEPT_BYTES = 128 << 20
"""Inputs of a matrix are kept up to this size; the batches beyond it are computed again."""


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


@dataclass(slots=True)
class _Front:
    """The parameters and buffers of a block in front of some matrices."""

    block: nn.Module
    behind: tuple[str, ...]
    """Names of the matrices that data meets later: they may change."""
    state: list[_Seen] = field(default_factory=list)

    def is_unchanged(self) -> bool:
        """Whether everything is as it was at the call before this one."""
        before, self.state = self.state, self._look()
        return len(before) == len(self.state) and all(map(_Seen.is_as, self.state, before))

    def _look(self) -> list[_Seen]:
        return [
            _Seen(name, tensor, tensor.data, tensor._version)  # noqa: SLF001
            for part in (self.block.named_parameters(), self.block.named_buffers())
            for name, tensor in part
            if not name.startswith(self.behind)
        ]


def _first(output: Any) -> Any:
    """Without attention weights, of which there are tokens² and which no layer reads."""
    return (output[0], *(None for _ in output[1:])) if isinstance(output, tuple) else output


class Settled:
    """What one module of a block gave for each batch, as long as nothing in front of `behind` changes."""

    def __init__(self, block: nn.Module, module: str, behind: tuple[str, ...]) -> None:
        """Take the block, the module's path in it, and the matrices that data meets after it."""
        self.module = module
        self._computing = block.get_submodule(module)
        self._front = _Front(block, behind)
        self._kept: dict[int, Any] = {}  # by the first sample of the batch

    @contextmanager
    def replayed(self, batch: Sequence[int]) -> Iterator[None]:
        """Within the block, let the module answer for this batch as it did before."""
        if not self._front.is_unchanged():
            self._kept.clear()
        compute = self._computing.forward

        def answer(*positional: Any, **named: Any) -> Any:
            if batch[0] not in self._kept:
                self._kept[batch[0]] = _first(compute(*positional, **named))
            return self._kept[batch[0]]

        with _answering(self._computing, answer):
            yield


class SettledInput:
    """What one matrix of a block received for each batch, as long as nothing in front of it changes.

    The matrices whose outputs only it reads need not be multiplied by then.
    """

    def __init__(self, block: nn.Module, matrix: str, read_by_it: tuple[str, ...]) -> None:
        """Take the block, the matrix's path in it, and those of the matrices right before it."""
        self.matrix = matrix
        self._block = block
        self._read_by_it = read_by_it
        self._front = _Front(block, (f"{matrix}.",))
        self._kept: dict[int, Tensor] = {}
        self._bytes = 0

    def keep(self, batch: Sequence[int], received: Tensor) -> None:
        """Note what the matrix received for a batch, if there is room for it."""
        self._forget_if_changed()
        if batch[0] not in self._kept and self._bytes + received.nbytes <= KEPT_BYTES:
            self._kept[batch[0]] = received
            self._bytes += received.nbytes

    @contextmanager
    def replayed(self, batch: Sequence[int]) -> Iterator[None]:
        """Within the block, let the matrix compute on what it received for this batch before."""
        self._forget_if_changed()
        received = self._kept.get(batch[0])
        if received is None:
            yield
            return
        matrix = self._block.get_submodule(self.matrix)
        compute = matrix.forward
        with (
            _giving_zeros(self._block, self._read_by_it),
            _answering(matrix, lambda _: compute(received)),
        ):
            yield

    def _forget_if_changed(self) -> None:
        if not self._front.is_unchanged():
            self._kept.clear()
            self._bytes = 0


@contextmanager
def _giving_zeros(block: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """Let matrices give zeros instead of products."""
    with ExitStack() as stack:
        for name in names:
            matrix = block.get_submodule(name)
            stack.enter_context(_answering(matrix, partial(_zeros, matrix)))
        yield


def _zeros(matrix: nn.Module, x: Tensor) -> Tensor:
    width: Any = matrix.out_features
    return x.new_zeros(*x.shape[:-1], width)


@contextmanager
def _answering(module: nn.Module, answer: Callable[..., Any]) -> Iterator[None]:
    module.forward = answer
    try:
        yield
    finally:
        del module.forward  # the class has its own

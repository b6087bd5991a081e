"""What the matrices of a block receive from the calibration samples, measured when asked for."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from spq_core.errors import NumericalError
from spq_core.models.finite import all_finite
from spq_core.streaming.moments import InputMoments, RunningMoments
from spq_core.streaming.settled import Settled, SettledInput

Group = tuple[str, ...]


class _Reached(Exception):  # noqa: N818 - a signal, not an error
    """The samples have come as far as they need to."""


@dataclass(slots=True)
class LayerInputs:
    """Moments of a block's inputs in its present state.

    Matrices that receive the same input share one measurement, and a measurement is kept until a
    matrix in front of it changes. So each distinct input is measured once per state, and a stage
    that works through a block in order sees what its own changes do to later inputs.
    """

    block: nn.Module
    groups: tuple[Group, ...]
    """Names of matrices in the order data meets them; those of one group receive the same input."""
    run: Callable[[Sequence[int]], Any]
    """Send some samples through the block, once."""
    batches: Sequence[Sequence[int]]
    """The samples to measure on, as many at a time as go through together."""
    measured: dict[Group, InputMoments] = field(default_factory=dict)
    settled: Settled | None = None
    """The block's attention, where there is one."""
    settled_input: SettledInput | None = None
    """What the last matrix of the block's MLP receives, where there is one."""

    def moments(self, name: str) -> InputMoments:
        """Moments of what the matrix `name` receives."""
        group = next(group for group in self.groups if name in group)
        if group not in self.measured:
            self.measured[group] = self._measure(group[0])
        return self.measured[group]

    def changed(self, name: str) -> None:
        """Forget what was measured behind a matrix."""
        position = next(i for i, group in enumerate(self.groups) if name in group)
        for group in self.groups[position + 1 :]:
            self.measured.pop(group, None)

    def cut(self, name: str) -> None:
        """Forget also what the matrix itself receives: its input became narrower."""
        self.measured.pop(next(group for group in self.groups if name in group), None)
        self.changed(name)

    @torch.no_grad()
    def forward(self, batch: Sequence[int]) -> Any:
        """What the block makes of some samples; what has not changed since is not computed again."""
        with ExitStack() as stack:
            for part in (self.settled, self.settled_input):
                if part is not None:
                    stack.enter_context(part.replayed(batch))
            return self.run(batch)

    @torch.no_grad()
    def _measure(self, name: str) -> InputMoments:
        inside = self.settled is not None and name.startswith(f"{self.settled.module}.")
        run = self.run if inside else self.forward
        running: RunningMoments | None = None
        with _stopping_at(self.block.get_submodule(name)) as received:
            for batch in self.batches:
                try:
                    run(batch)
                except _Reached:
                    arrived = received.pop()
                    if self.settled_input is not None and name == self.settled_input.matrix:
                        self.settled_input.keep(batch, arrived)
                    if running is None:
                        running = RunningMoments(arrived.shape[-1], arrived.device)
                    running.add(arrived)
        if running is None:
            raise RuntimeError(f"no sample reached {name}")
        moments = running.moments()
        if not all_finite(moments.second_moment):
            raise NumericalError("calibration", f"the input of {name}")
        return moments


@contextmanager
def _stopping_at(module: nn.Module) -> Iterator[list[Tensor]]:
    """Collect the module's input and stop the forward pass there."""
    received: list[Tensor] = []

    def stop(_module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        received.append(arguments[0])
        raise _Reached

    handle = module.register_forward_pre_hook(stop)
    try:
        yield received
    finally:
        handle.remove()


def input_of(module: nn.Module, run: Callable[[], object]) -> Tensor:
    """What a module receives when `run` is called; the forward pass ends there."""
    with _stopping_at(module) as received:
        try:
            run()
        except _Reached:
            return received.pop()
    raise RuntimeError("the forward pass did not reach the module")

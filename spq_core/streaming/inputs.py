"""What the matrices of a block receive from the calibration samples, measured when asked for."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from spq_core.formats.slicing import linear_at
from spq_core.models.family import Group, Step
from spq_core.streaming.experts import finite, moments_of_experts, require_seen
from spq_core.streaming.moments import InputMoments, RunningMoments
from spq_core.streaming.settled import Settled, SettledInput

TOGETHER_BYTES = 1 << 30
"""Of second moments of experts that are measured in one pass over the samples."""


class _Reached(Exception):  # noqa: N818 - a signal, not an error
    """The samples have come as far as they need to."""


@dataclass(slots=True)
class LayerInputs:
    """Moments of a block's inputs in its present state.

    Matrices that receive the same input share one measurement, and a measurement is kept until a
    matrix in front of it changes. So each distinct input is measured once per state, and a stage
    that works through a block in order sees what its own changes do to later inputs. What experts
    receive is measured together, some at a time.
    """

    block: nn.Module
    steps: tuple[Step, ...]
    """Names of matrices in the order data meets them; those of one group receive the same input, and groups
    of one step change nothing for one another."""
    run: Callable[[Sequence[int]], Any]
    """Send some samples through the block, once."""
    batches: Sequence[Sequence[int]]
    """The samples to measure on, as many at a time as go through together."""
    measured: dict[Group, InputMoments] = field(default_factory=dict)
    routed: dict[str, int] = field(default_factory=dict)
    """How many tokens each expert was sent, by its matrices; of those that were asked for."""
    settled: Settled | None = None
    """The block's attention, where there is one."""
    settled_input: SettledInput | None = None
    """What the last matrix of the block's MLP receives, where there is one."""

    def moments(self, name: str) -> InputMoments:
        """Moments of what the matrix `name` receives.

        Raises:
            DatasetError: it is an expert's, and no token chose most of the experts.
            NumericalError: something is not finite.
        """
        step = next(step for step in self.steps if any(name in group for group in step))
        position = next(i for i, group in enumerate(step) if name in group)
        group = step[position]
        if group in self.measured:
            return self.measured[group]
        if len(step) == 1:
            self.measured[group] = self._measure(group[0])
        else:
            for other in step:  # those before it have been asked for; all at once may be gigabytes
                self.measured.pop(other, None)
            some = _together(self.block, step[position:])
            found = moments_of_experts(self.block, some, self._run_all)
            self.measured |= found
            self.routed |= {one[0]: moments.routed or 0 for one, moments in found.items()}
            tokens = [self.routed[one[0]] for one in step if one[0] in self.routed]
            if len(tokens) == len(step):
                require_seen(step[0][0], tokens)
        return self.measured[group]

    def changed(self, name: str) -> None:
        """Forget what was measured behind a matrix."""
        position = next(
            i for i, step in enumerate(self.steps) if any(name in group for group in step)
        )
        for step in self.steps[position + 1 :]:
            for group in step:
                self.measured.pop(group, None)

    def cut(self, name: str) -> None:
        """Forget also what the matrix itself receives: its input became narrower."""
        groups = (group for step in self.steps for group in step)
        self.measured.pop(next(group for group in groups if name in group), None)
        self.changed(name)

    def removed(self) -> None:
        """Matrices are gone, whole: forget them, and what was measured."""
        present = {name for name, _ in self.block.named_modules()}
        steps = (tuple(group for group in step if present.issuperset(group)) for step in self.steps)
        self.steps = tuple(step for step in steps if step)
        self.measured.clear()

    def _run_all(self) -> None:
        for batch in self.batches:
            self.forward(batch)

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
        return finite(running.moments(), name)


def _together(block: nn.Module, groups: Step) -> Step:
    """As many of the first groups as have room for their moments."""
    some: list[Group] = []
    taken = 0
    for group in groups:
        taken += 4 * linear_at(block, group[0]).in_features ** 2
        if some and taken > TOGETHER_BYTES:
            break
        some.append(group)
    return tuple(some)


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

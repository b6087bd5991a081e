"""In which order data meets the matrices of a layer, and which receive the same: watched while a sample passes.

Needed where a layer has matrices whose place no name tells: state space and convolution layers, gates of attention,
indexers, inputs of each layer. What is never called receives nothing, and is left alone.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from torch import Tensor, nn

from spq_core.models.family import Family, Step, steps_in


def steps_of(family: Family, block: nn.Module, run: Callable[[], object]) -> tuple[Step, ...]:
    """The steps of a layer.

    Args:
        run: sends a sample through it.
    """
    present = {name for name, _ in block.named_modules() if name}
    known = steps_in(family, present)
    if not present.intersection(family.others):
        return known
    return _watched(family, block, run, known)


class _Arrived(NamedTuple):
    """What a module received. Holding it keeps its memory from being used again."""

    name: str
    tensor: Tensor
    version: int

    def is_as(self, other: "_Arrived") -> bool:
        """Whether both saw one memory in one state: states may have been added to in place since."""
        mine, theirs = self.tensor, other.tensor
        same = mine.data_ptr() == theirs.data_ptr() and self.version == other.version
        return same and mine.shape == theirs.shape and mine.stride() == theirs.stride()


def _watched(
    family: Family, block: nn.Module, run: Callable[[], object], known: tuple[Step, ...]
) -> tuple[Step, ...]:
    experts = [step for step in known if len(step) > 1]
    inside = {name for step in experts for group in step for name in group}
    groups: list[list[_Arrived]] = []
    for one in _arrivals(block, {*family.experts, *family.matrices} - inside, run):
        plain = (group for group in groups if group[0].name not in family.experts)
        same = next((group for group in plain if one.is_as(group[0])), None)
        if same is None or one.name in family.experts:
            groups.append([one])
        else:
            same.append(one)
    found: list[Step] = []
    for group in groups:
        if group[0].name in family.experts:
            found += experts
        else:
            found.append((tuple(one.name for one in group),))
    return tuple(found)


def _arrivals(block: nn.Module, names: set[str], run: Callable[[], object]) -> list[_Arrived]:
    """What each of these modules receives first, in order."""
    arrived: dict[str, _Arrived] = {}

    def note(name: str, _module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        if arguments and name not in arrived:
            tensor = arguments[0]
            arrived[name] = _Arrived(name, tensor, tensor._version)  # noqa: SLF001

    handles = [
        module.register_forward_pre_hook(partial(note, name))
        for name, module in block.named_modules()
        if name in names
    ]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return list(arrived.values())

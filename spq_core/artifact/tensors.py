"""A block's tensors for storage: one of each, though modules may share them."""

from typing import NamedTuple

from torch import Tensor, nn


class StoredTensors(NamedTuple):
    """What to write, and who shares it."""

    tensors: dict[str, Tensor]
    aliases: dict[str, str]
    """Name of a tensor that is not written → name of the one it is the same as."""


def distinct_tensors(block: nn.Module) -> StoredTensors:
    """A block's state without the second name of tied parameters."""
    first: dict[int, str] = {}
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    for name, tensor in block.state_dict().items():
        kept = first.setdefault(tensor.data_ptr(), name)
        if kept == name:
            tensors[name] = tensor
        else:
            aliases[name] = kept
    return StoredTensors(tensors, aliases)


def tie(block: nn.Module, aliases: dict[str, str]) -> None:
    """Make parameters one again after their values were filled in."""
    for alias, kept in aliases.items():
        path, _, name = alias.rpartition(".")
        setattr(block.get_submodule(path), name, block.get_parameter(kept))

"""Find the family of a model from the structure of its decoder layers."""

from collections.abc import Iterable, Sequence

from torch import nn
from transformers.pytorch_utils import Conv1D

from spq_core.errors import UnsupportedModelError
from spq_core.models.composed import family_of_parts
from spq_core.models.experts import modules_of_experts
from spq_core.models.family import FAMILIES, Family

FUSED_AXES = 3
CONVOLUTION = 8
"""Taps of the short convolutions of state space layers, at most."""


def match_family(layers: Sequence[nn.Module]) -> Family:
    """Return the family whose matrices these decoder layers have.

    Raises:
        UnsupportedModelError: there is no matrix, or one is held in a way that no stage would touch.
    """
    found = [_linears(layer) for layer in layers]
    for family in FAMILIES:
        if all(one.keys() == family.matrices for one in found):
            return family
    _refuse_fused_tensors(layers)
    if not any(found):
        raise UnsupportedModelError("the decoder layers hold no linear layers")
    experts = {path for layer in layers for path, _ in modules_of_experts(layer)}
    return family_of_parts(found, experts)


def _linears(layer: nn.Module) -> dict[str, tuple[int, int]]:
    """(out, in) of each, by name."""
    found: dict[str, tuple[int, int]] = {}
    for name, module in layer.named_modules():
        if isinstance(module, nn.Linear):
            found[name] = (module.out_features, module.in_features)
        elif isinstance(module, Conv1D):
            found[name] = (module.weight.shape[1], module.weight.shape[0])
    return found


def _refuse_fused_tensors(layers: Iterable[nn.Module]) -> None:
    for layer in layers:
        for name, parameter in layer.named_parameters():
            if parameter.ndim == FUSED_AXES and min(parameter.shape[1:]) > CONVOLUTION:
                raise UnsupportedModelError(
                    f"a decoder layer holds {name!r} of shape {list(parameter.shape)}: matrices fused in a way that "
                    "is not known here, which no stage would touch"
                )

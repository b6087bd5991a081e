"""Find the family of a model from the structure of a decoder layer."""

from torch import nn
from transformers.pytorch_utils import Conv1D

from spq_core.errors import UnsupportedModelError
from spq_core.models.family import FAMILIES, Family


def match_family(layer: nn.Module) -> Family:
    """Return the family whose matrices this decoder layer has, and no others.

    Raises:
        UnsupportedModelError: no family fits; the message lists the linear layers found.
    """
    linears = {
        name for name, module in layer.named_modules() if isinstance(module, nn.Linear | Conv1D)
    }
    for family in FAMILIES:
        if linears == {*family.attention, *family.mlp_in, family.mlp_out}:
            return family
    found = ", ".join(sorted(linears)) or "none"
    known = ", ".join(family.name for family in FAMILIES)
    raise UnsupportedModelError(
        f"no known family ({known}) has exactly these linear layers in a decoder layer: {found}"
    )

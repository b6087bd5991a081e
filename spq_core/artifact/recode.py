"""The state of a loaded model as an artifact stores it: codes on a lattice by their entropy again."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from spq_core.layers.coded import encode
from spq_core.layers.int8_linear import Int8Weight
from spq_core.layers.steps import Steps, exponents_of

CODED_KINDS = ("coded", "coded_embedding")
DECODED_PARTS = ("codes", "scale", "input_scale")


def coded_state(
    model: nn.Module, layouts: dict[str, Any], tied: Mapping[str, str]
) -> dict[str, Tensor]:
    """Return the model's state with coded matrices; the same codes give the same bytes.

    Args:
        layouts: of `quantization_config`; lengths and orders are brought up to date, as another
            zlib may pack the same codes otherwise.
        tied: names of tensors that are not stored.
    """
    state: dict[str, Tensor] = model.state_dict()
    for path, layout in coded_layouts(layouts):
        module = model.get_submodule(path)
        if isinstance(module, Int8Weight) and module.input_scale is not None:
            for part in DECODED_PARTS:
                state.pop(f"{path}.{part}", None)
            if f"{path}.packed" in tied:
                continue
            steps = Steps(
                layout["base"],
                exponents_of(module.scale.data.cpu() / layout["base"]),
                exponents_of(module.input_scale.data.cpu()),
            )
            coded = encode(module.codes.data[:, : module.input_scale.numel()], steps)
            state[f"{path}.packed"] = coded.packed
            layout |= {"n_bytes": coded.packed.numel(), "order": coded.order}
    return {name: tensor for name, tensor in state.items() if name not in tied}


def coded_layouts(layouts: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Path and layout of every coded matrix, factors of pairs included."""
    for name, layout in layouts.items():
        parts = (
            [(f"{name}.{part}", layout[part]) for part in ("down", "up")]
            if layout["kind"] == "low_rank"
            else [(name, layout)]
        )
        yield from ((path, one) for path, one in parts if one["kind"] in CODED_KINDS)

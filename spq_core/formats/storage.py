"""The state of a loaded model as an artifact stores it: the inverse of `runtime`."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from spq_core.formats.entropy.coded import encode
from spq_core.formats.int4.linear import Int4Weight
from spq_core.formats.int8.linear import Int8Weight
from spq_core.formats.packed.linear import CODES_PER_PACK
from spq_core.formats.runtime import SIGN
from spq_core.formats.steps import Steps, exponents_of

CODED_KINDS = ("coded", "coded_embedding")
PACKED_KINDS = ("packed", "packed_embedding")
COMPUTING_PARTS = ("codes", "scale", "input_scale", "blocks", "steps")


def to_stored_state(
    model: nn.Module, layouts: dict[str, Any], tied: Mapping[str, str]
) -> dict[str, Tensor]:
    """Return the model's state with matrices in their stored form; the same codes give the same bytes.

    Args:
        layouts: of `quantization_config`; lengths and orders of coded matrices are brought up to date,
            as another zlib may pack the same codes otherwise.
        tied: names of tensors that are not stored.
    """
    state: dict[str, Tensor] = model.state_dict()
    for path, layout in recoded_layouts(layouts):
        module = model.get_submodule(path)
        if not isinstance(module, Int8Weight | Int4Weight):
            continue
        for part in COMPUTING_PARTS:
            state.pop(f"{path}.{part}", None)
        if f"{path}.packed" not in tied:
            parts = _coded(module, layout) if layout["kind"] in CODED_KINDS else _packed(module)
            state |= {f"{path}.{part}": tensor for part, tensor in parts.items()}
    return {name: tensor for name, tensor in state.items() if name not in tied}


def recoded_layouts(layouts: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Path and layout of every matrix that may compute in another form, parts of layers included."""
    for name, layout in layouts.items():
        parts = [part for part in ("down", "up", "base") if isinstance(layout.get(part), dict)]
        if parts:
            yield from recoded_layouts({f"{name}.{part}": layout[part] for part in parts})
        elif layout["kind"] in CODED_KINDS + PACKED_KINDS:
            yield name, layout


def _coded(module: nn.Module, layout: dict[str, Any]) -> dict[str, Tensor]:
    assert isinstance(module, Int8Weight) and module.input_scale is not None  # noqa: S101, PT018
    steps = Steps(
        layout["base"],
        exponents_of(module.scale.data.cpu() / layout["base"]),
        exponents_of(module.input_scale.data.cpu()),
    )
    coded = encode(module.codes.data[:, : module.input_scale.numel()], steps)
    layout |= {"n_bytes": coded.packed.numel(), "order": coded.order}
    return {"packed": coded.packed}


def _packed(module: Int8Weight | Int4Weight) -> dict[str, Tensor]:
    if isinstance(module, Int4Weight):
        return module.stored()._asdict()
    n_in = getattr(module, "in_features", module.codes.shape[1])
    codes = (module.codes.data[:, :n_in] ^ SIGN).view(torch.uint8)
    scale = module.scale.data[:, None].half()
    return {
        "packed": functional.pad(codes, (0, -n_in % CODES_PER_PACK)),
        "scale": scale,
        "zero": torch.full_like(scale, -SIGN, dtype=torch.uint8),
    }

"""The shape of a compressed layer as data: written into config.json, read before any weight is.

A layout says which module stands at a name and how large it is, so that the module can be made on
the meta device and filled from safetensors without a floating-point copy ever existing.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from torch import nn

from spq_core.errors import ArtifactError
from spq_core.layers.int8_linear import Int8Embedding, Int8Linear
from spq_core.layers.low_rank_linear import Factor, LowRankLinear

Size = Annotated[int, Field(ge=1, le=1 << 24)]


class _Layout(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DenseLayout(_Layout):
    """nn.Linear of a size that differs from the architecture's."""

    kind: Literal["dense"] = "dense"
    n_in: Size
    n_out: Size
    bias: bool


class Int8Layout(_Layout):
    """Int8Linear; `scales` is 1 or n_out, `n_padded` the columns of the stored codes."""

    kind: Literal["int8"] = "int8"
    n_in: Size
    n_padded: Size
    n_out: Size
    bias: bool
    scales: Size


class LowRankLayout(_Layout):
    """LowRankLinear and its two factors."""

    kind: Literal["low_rank"] = "low_rank"
    down: Annotated[DenseLayout | Int8Layout, Field(discriminator="kind")]
    up: Annotated[DenseLayout | Int8Layout, Field(discriminator="kind")]


class Int8EmbeddingLayout(_Layout):
    """Int8Embedding; `scales` is 1 or n."""

    kind: Literal["int8_embedding"] = "int8_embedding"
    n: Size
    dim: Size
    scales: Size


Layout = Annotated[
    DenseLayout | Int8Layout | LowRankLayout | Int8EmbeddingLayout, Field(discriminator="kind")
]
_LAYOUTS: TypeAdapter[dict[str, Layout]] = TypeAdapter(dict[str, Layout])


def parse_layouts(document: Mapping[str, Any]) -> dict[str, Layout]:
    """Read module layouts from config.json.

    Raises:
        ArtifactError: an entry is malformed or of a kind this version does not know.
    """
    try:
        return _LAYOUTS.validate_python(document)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ArtifactError(f"quantization_config.modules.{where}: {first['msg']}") from None


def layout_of(module: nn.Module) -> Layout | None:
    """Describe a linear or embedding layer of ours, or a plain nn.Linear; None for anything else."""
    if isinstance(module, LowRankLinear):
        return LowRankLayout(down=_factor_layout(module.down), up=_factor_layout(module.up))
    if isinstance(module, Int8Linear | nn.Linear):
        return _factor_layout(module)
    if isinstance(module, Int8Embedding):
        n, dim = module.codes.shape
        return Int8EmbeddingLayout(n=n, dim=dim, scales=module.scale.numel())
    return None


def _factor_layout(module: Factor) -> DenseLayout | Int8Layout:
    n_in, n_out, has_bias = module.in_features, module.out_features, module.bias is not None
    if isinstance(module, Int8Linear):
        n_padded, scales = module.codes.shape[1], module.scale.numel()
        return Int8Layout(n_in=n_in, n_padded=n_padded, n_out=n_out, bias=has_bias, scales=scales)
    return DenseLayout(n_in=n_in, n_out=n_out, bias=has_bias)


def build(layout: Layout, dtype: torch.dtype) -> nn.Module:
    """Make the module a layout describes, without values, on the meta device.

    Args:
        dtype: of floating-point weights and biases; scales are float32 always.
    """
    match layout:
        case DenseLayout() | Int8Layout():
            return _build_factor(layout, dtype)
        case LowRankLayout():
            return LowRankLinear(_build_factor(layout.down, dtype), _build_factor(layout.up, dtype))
        case Int8EmbeddingLayout():
            codes = torch.empty(layout.n, layout.dim, dtype=torch.int8, device="meta")
            return Int8Embedding(codes, _empty_scale(layout.scales), dtype)


def _build_factor(layout: DenseLayout | Int8Layout, dtype: torch.dtype) -> Factor:
    if isinstance(layout, DenseLayout):
        return nn.Linear(layout.n_in, layout.n_out, bias=layout.bias, dtype=dtype, device="meta")
    codes = torch.empty(layout.n_out, layout.n_padded, dtype=torch.int8, device="meta")
    bias = torch.empty(layout.n_out, dtype=dtype, device="meta") if layout.bias else None
    return Int8Linear(codes, _empty_scale(layout.scales), bias, in_features=layout.n_in)


def _empty_scale(count: int) -> torch.Tensor:
    return torch.empty(count, dtype=torch.float32, device="meta")


def install(root: nn.Module, layouts: Mapping[str, Layout], dtype: torch.dtype) -> None:
    """Replace the named submodules of `root` by empty modules of the given layouts.

    Raises:
        ArtifactError: a name is not a submodule of `root`.
    """
    for name, layout in layouts.items():
        try:
            root.get_submodule(name)
        except AttributeError:
            raise ArtifactError(
                f"the model has no module {name!r} that the artifact describes"
            ) from None
        root.set_submodule(name, build(layout, dtype))

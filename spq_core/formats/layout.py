"""The shape of a compressed layer as data: written into config.json, read before any weight is.

A layout says which module stands at a name and how large it is, so that the module can be made on
the meta device and filled from safetensors without a floating-point copy ever existing.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from torch import nn

from spq_core.errors import ArtifactError
from spq_core.formats.adapted.linear import AdaptedLinear, Base
from spq_core.formats.entropy.coded import CodedEmbedding, CodedLinear
from spq_core.formats.int8.linear import Int8Embedding, Int8Linear
from spq_core.formats.low_rank.linear import Factor, LowRankLinear
from spq_core.formats.packed.bits import Bits
from spq_core.formats.packed.linear import CODES_PER_PACK, PackedEmbedding, PackedLinear
from spq_core.formats.steps import CodedWeight

Size = Annotated[int, Field(ge=1, le=1 << 24)]
ByteCount = Annotated[int, Field(ge=1, le=1 << 40)]
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]


class _Layout(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


Grouped = TypeVar("Grouped", bound="PackedLayout | PackedEmbeddingLayout")


def _with_groups_within(layout: Grouped, columns: int) -> Grouped:
    """Refuse groups wider than a row: widening one would take memory that no file paid for."""
    if layout.group_size > columns:
        raise ValueError(f"group_size {layout.group_size} is above {columns} columns")
    return layout


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


class PackedLayout(_Layout):
    """PackedLinear: codes of `bits` bits, one scale and zero per row and `group_size` columns."""

    kind: Literal["packed"] = "packed"
    n_in: Size
    n_out: Size
    bias: bool
    bits: Bits
    group_size: Size

    @model_validator(mode="after")
    def _groups_fit(self) -> Self:
        return _with_groups_within(self, self.n_in)


class CodedLayout(_Layout):
    """CodedLinear: `n_bytes` bytes that decode to codes on a lattice."""

    kind: Literal["coded"] = "coded"
    n_in: Size
    n_out: Size
    bias: bool
    n_bytes: ByteCount
    base: Positive
    order: Literal["columns", "rows"]


class AdaptedLayout(_Layout):
    """AdaptedLinear: a layer and an adapter of some rank beside it."""

    kind: Literal["adapted"] = "adapted"
    base: Annotated[DenseLayout | Int8Layout | PackedLayout, Field(discriminator="kind")]
    rank: Size


LinearLayout = DenseLayout | Int8Layout | PackedLayout | CodedLayout | AdaptedLayout
FactorLayout = Annotated[LinearLayout, Field(discriminator="kind")]


class LowRankLayout(_Layout):
    """LowRankLinear and its two factors."""

    kind: Literal["low_rank"] = "low_rank"
    down: FactorLayout
    up: FactorLayout


class PackedEmbeddingLayout(_Layout):
    """PackedEmbedding."""

    kind: Literal["packed_embedding"] = "packed_embedding"
    n: Size
    dim: Size
    output_scale: Positive = 1.0
    bits: Bits
    group_size: Size

    @model_validator(mode="after")
    def _groups_fit(self) -> Self:
        return _with_groups_within(self, self.dim)


class CodedEmbeddingLayout(_Layout):
    """CodedEmbedding."""

    kind: Literal["coded_embedding"] = "coded_embedding"
    n: Size
    dim: Size
    output_scale: Positive = 1.0
    n_bytes: ByteCount
    base: Positive
    order: Literal["columns", "rows"]


class Int8EmbeddingLayout(_Layout):
    """Int8Embedding; `scales` is 1 or n."""

    kind: Literal["int8_embedding"] = "int8_embedding"
    n: Size
    dim: Size
    output_scale: Positive = 1.0
    scales: Size


Layout = Annotated[
    LinearLayout
    | LowRankLayout
    | Int8EmbeddingLayout
    | PackedEmbeddingLayout
    | CodedEmbeddingLayout,
    Field(discriminator="kind"),
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
    if isinstance(module, Factor | CodedLinear):
        return _factor_layout(module)
    if isinstance(module, Int8Embedding):
        n, dim = module.codes.shape
        return Int8EmbeddingLayout(
            n=n, dim=dim, output_scale=module.output_scale, scales=module.scale.numel()
        )
    if isinstance(module, PackedEmbedding):
        n = module.packed.shape[0]
        return PackedEmbeddingLayout(
            n=n, dim=module.n_in, output_scale=module.output_scale,
            bits=module.bits, group_size=module.group_size,
        )  # fmt: skip
    if isinstance(module, CodedEmbedding):
        return CodedEmbeddingLayout(
            n=module.n_out, dim=module.n_in, output_scale=module.output_scale,
            n_bytes=module.packed.numel(), base=module.base, order=module.order,
        )  # fmt: skip
    return None


def _factor_layout(module: Factor | CodedLinear) -> LinearLayout:
    if isinstance(module, AdaptedLinear):
        return AdaptedLayout(base=_base_layout(module.base), rank=module.adapter_down.shape[0])
    if isinstance(module, CodedLinear):
        return CodedLayout(
            n_in=module.n_in, n_out=module.n_out, bias=module.bias is not None,
            n_bytes=module.packed.numel(), base=module.base, order=module.order,
        )  # fmt: skip
    return _base_layout(module)


def _base_layout(module: Base) -> DenseLayout | Int8Layout | PackedLayout:
    has_bias = module.bias is not None
    n_in, n_out = module.in_features, module.out_features
    if isinstance(module, PackedLinear):
        return PackedLayout(
            n_in=n_in, n_out=n_out, bias=has_bias, bits=module.bits, group_size=module.group_size
        )
    if isinstance(module, Int8Linear):
        n_padded, scales = module.codes.shape[1], module.scale.numel()
        return Int8Layout(n_in=n_in, n_padded=n_padded, n_out=n_out, bias=has_bias, scales=scales)
    return DenseLayout(n_in=n_in, n_out=n_out, bias=has_bias)


def build(layout: Layout, dtype: torch.dtype) -> nn.Module:
    """Make the module a layout describes, without values, on the meta device.

    Args:
        dtype: of floating-point weights and biases; scales have their own.
    """
    match layout:
        case LowRankLayout():
            # A coded factor becomes one of the layers LowRankLinear names when it is expanded.
            down, up = (_build_linear(part, dtype) for part in (layout.down, layout.up))
            return LowRankLinear(down, up)  # type: ignore[arg-type]
        case Int8EmbeddingLayout():
            codes = _empty(layout.n, layout.dim, dtype=torch.int8)
            return Int8Embedding(
                codes, _empty(layout.scales), dtype, output_scale=layout.output_scale
            )
        case PackedEmbeddingLayout():
            parts = _packed_parts(layout.n, layout.dim, layout.bits, layout.group_size)
            return PackedEmbedding(
                *parts, dtype, bits=layout.bits, n_in=layout.dim, group_size=layout.group_size,
                output_scale=layout.output_scale,
            )  # fmt: skip
        case CodedEmbeddingLayout():
            return CodedEmbedding(_coded(layout), layout.n, layout.dim, dtype, layout.output_scale)
        case _:
            return _build_linear(layout, dtype)


def _build_linear(layout: LinearLayout, dtype: torch.dtype) -> nn.Module:
    if isinstance(layout, AdaptedLayout):
        base: Any = _build_linear(layout.base, dtype)
        down = _empty(layout.rank, layout.base.n_in, dtype=dtype)
        return AdaptedLinear(base, down, _empty(layout.base.n_out, layout.rank, dtype=dtype))
    n_in, n_out = layout.n_in, layout.n_out
    if isinstance(layout, DenseLayout):
        return nn.Linear(n_in, n_out, bias=layout.bias, dtype=dtype, device="meta")
    bias = _empty(n_out, dtype=dtype) if layout.bias else None
    match layout:
        case CodedLayout():
            return CodedLinear(_coded(layout), n_out, n_in, bias)
        case PackedLayout():
            parts = _packed_parts(n_out, n_in, layout.bits, layout.group_size)
            return PackedLinear(
                *parts, bias, bits=layout.bits, n_in=n_in, group_size=layout.group_size
            )
        case Int8Layout():
            codes = _empty(n_out, layout.n_padded, dtype=torch.int8)
            return Int8Linear(codes, _empty(layout.scales), bias, in_features=n_in)


def _packed_parts(
    n_out: int, n_in: int, bits: int, group_size: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    packs, groups = -(-n_in // CODES_PER_PACK), -(-n_in // group_size)
    return (
        _empty(n_out, packs * bits, dtype=torch.uint8),
        _empty(n_out, groups, dtype=torch.float16),
        _empty(n_out, groups, dtype=torch.uint8),
    )


def _coded(layout: CodedLayout | CodedEmbeddingLayout) -> CodedWeight:
    return CodedWeight(_empty(layout.n_bytes, dtype=torch.uint8), layout.base, layout.order)


def _empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


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

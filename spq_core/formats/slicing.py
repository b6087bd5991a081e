"""Read and cut linear layers, whatever form their weight is stored in."""

from typing import NamedTuple

from jaxtyping import Float, Int64
from torch import Tensor, nn

from spq_core.formats.adapted.linear import AdaptedLinear
from spq_core.formats.int4.linear import Int4Linear
from spq_core.formats.int8.linear import Int8Linear
from spq_core.formats.low_rank.linear import Factor, LowRankLinear
from spq_core.formats.packed.linear import PackedLinear

AnyLinear = nn.Linear | Int8Linear | PackedLinear | Int4Linear | AdaptedLinear | LowRankLinear


def float_weight(layer: AnyLinear) -> Float[Tensor, "out in"]:
    """Return the weight as one float32 matrix."""
    if isinstance(layer, LowRankLinear):
        return float_weight(layer.up) @ float_weight(layer.down)
    if isinstance(layer, AdaptedLinear):
        beside = layer.adapter_up.data.float() @ layer.adapter_down.data.float()
        return float_weight(layer.base) + layer.scale * beside
    if isinstance(layer, Int8Linear):
        weight = layer.unpadded_codes().float() * layer.scale.data[:, None]
        return weight if layer.input_scale is None else weight * layer.input_scale.data
    if isinstance(layer, PackedLinear | Int4Linear):
        return layer.dequantized()
    return layer.weight.float()


def bias_of(layer: AnyLinear) -> Float[Tensor, " out"] | None:
    """Return the bias, which a low-rank pair keeps on its second factor."""
    bias = layer.up.bias if isinstance(layer, LowRankLinear) else layer.bias
    return None if bias is None else bias.data


def dense_linear(weight: Float[Tensor, "out in"], bias: Float[Tensor, " out"] | None) -> nn.Linear:
    """Make an nn.Linear around existing tensors, without copying or initialising."""
    n_out, n_in = weight.shape
    layer = nn.Linear(n_in, n_out, bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias, requires_grad=False)
    return layer


def keep_rows(layer: AnyLinear, kept: Int64[Tensor, " k"]) -> AnyLinear:
    """Return the layer with only the output rows `kept`."""
    if isinstance(layer, LowRankLinear):
        return LowRankLinear(layer.down, _factor(keep_rows(layer.up, kept)))
    bias = None if layer.bias is None else layer.bias.data[kept]
    if isinstance(layer, PackedLinear | Int4Linear | AdaptedLinear):
        raise TypeError("rows of packed codes and of adapters are not cut; prune first")
    if isinstance(layer, Int8Linear):
        _require_plain(layer)
        scale = layer.scale.data
        kept_scale = scale if scale.numel() == 1 else scale[kept]
        return Int8Linear.of(layer.unpadded_codes()[kept], kept_scale, bias)
    return dense_linear(layer.weight.data[kept], bias)


def keep_columns(layer: AnyLinear, kept: Int64[Tensor, " k"]) -> AnyLinear:
    """Return the layer with only the input columns `kept`; bias and scales are unchanged."""
    if isinstance(layer, LowRankLinear):
        return LowRankLinear(_factor(keep_columns(layer.down, kept)), layer.up)
    bias = None if layer.bias is None else layer.bias.data
    if isinstance(layer, PackedLinear | Int4Linear | AdaptedLinear):
        raise TypeError("columns of packed codes and of adapters are not cut; prune first")
    if isinstance(layer, Int8Linear):
        _require_plain(layer)
        return Int8Linear.of(layer.unpadded_codes()[:, kept].contiguous(), layer.scale.data, bias)
    return dense_linear(layer.weight.data[:, kept].contiguous(), bias)


def _require_plain(layer: Int8Linear) -> None:
    if layer.input_scale is not None:
        raise TypeError("codes on a lattice are not cut; prune before quantizing")


def _factor(layer: AnyLinear) -> Factor:
    if isinstance(layer, LowRankLinear | Int4Linear):
        raise TypeError("a factor is neither a low-rank pair nor a layer of a loaded artifact")
    return layer


class EmbeddingAndHead(NamedTuple):
    """What stands around the decoder layers, before it is quantized."""

    embedding: nn.Embedding
    head: nn.Linear
    tied: bool
    """Whether both hold one matrix."""


def embedding_and_head(block: nn.Module, embedding_path: str, head_path: str) -> EmbeddingAndHead:
    """The embedding and head of a model's outermost block."""
    embedding, head = block.get_submodule(embedding_path), block.get_submodule(head_path)
    if not isinstance(embedding, nn.Embedding) or not isinstance(head, nn.Linear):
        raise TypeError(f"{embedding_path} and {head_path} are not an embedding and a linear layer")
    return EmbeddingAndHead(embedding, head, head.weight is embedding.weight)


def output_scale_of(embedding: nn.Embedding) -> float:
    """What the model multiplies looked-up rows by (Gemma: the root of its width)."""
    return float(getattr(embedding, "scalar_embed_scale", 1.0))


def linear_at(block: nn.Module, name: str) -> AnyLinear:
    """The linear layer of that name, in whatever form it is stored."""
    module = block.get_submodule(name)
    if not isinstance(module, AnyLinear):
        raise TypeError(f"{name} is a {type(module).__name__}, not a linear layer")
    return module

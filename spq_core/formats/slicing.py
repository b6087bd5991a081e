"""Read, cut and find linear layers, whatever form their weight is stored in."""

from collections.abc import Iterator
from typing import NamedTuple, TypeGuard

from jaxtyping import Float, Int64
from torch import Tensor, nn

from spq_core.formats.layer import ALL, CompressedLinear

AnyLinear = nn.Linear | CompressedLinear


def float_weight(layer: AnyLinear, rows: slice = ALL) -> Float[Tensor, "rows in"]:
    """Return the weight as one float32 matrix, or some of its rows."""
    if isinstance(layer, CompressedLinear):
        return layer.float_weight(rows)
    return layer.weight[rows].float()


def bias_of(layer: AnyLinear) -> Float[Tensor, " out"] | None:
    """Return the bias, which a low-rank pair keeps on its second factor."""
    return None if layer.bias is None else layer.bias.data


def dense_linear(weight: Float[Tensor, "out in"], bias: Float[Tensor, " out"] | None) -> nn.Linear:
    """Make an nn.Linear around existing tensors, without copying or initialising."""
    n_out, n_in = weight.shape
    layer = nn.Linear(n_in, n_out, bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias, requires_grad=False)
    return layer


def keep_rows(layer: AnyLinear, kept: Int64[Tensor, " k"]) -> AnyLinear:
    """Return the layer with only the output rows `kept`.

    Raises:
        TypeError: its form is not cut.
    """
    if isinstance(layer, CompressedLinear):
        return layer.keep_rows(kept)
    bias = bias_of(layer)
    return dense_linear(layer.weight.data[kept], None if bias is None else bias[kept])


def keep_columns(layer: AnyLinear, kept: Int64[Tensor, " k"]) -> AnyLinear:
    """Return the layer with only the input columns `kept`; bias and scales are unchanged.

    Raises:
        TypeError: its form is not cut.
    """
    if isinstance(layer, CompressedLinear):
        return layer.keep_columns(kept)
    return dense_linear(layer.weight.data[:, kept].contiguous(), bias_of(layer))


def scale_rows(layer: AnyLinear, factors: Float[Tensor, " out"]) -> AnyLinear:
    """Return the layer with its outputs multiplied by powers of two.

    Raises:
        TypeError: its form is not scaled.
    """
    if isinstance(layer, CompressedLinear):
        return layer.scale_rows(factors)
    bias = bias_of(layer)
    weight = layer.weight.data * factors[:, None]
    return dense_linear(weight, None if bias is None else bias * factors)


def is_linear(module: object) -> TypeGuard[AnyLinear]:
    """Whether a module is a linear layer, in any form."""
    return isinstance(module, AnyLinear)


def is_float(module: object) -> TypeGuard[nn.Linear]:
    """Whether a module is a linear layer with a floating-point weight of its own."""
    return isinstance(module, nn.Linear)


def is_table(module: object) -> TypeGuard[nn.Embedding]:
    """Whether a module is a table of embeddings in floating point."""
    return isinstance(module, nn.Embedding)


def float_linears(block: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """Linear layers in floating point by name, factors of a pair one by one."""
    for name, module in block.named_modules():
        if isinstance(module, nn.Linear):
            yield name, module


def is_one_matrix(module: object) -> TypeGuard[AnyLinear]:
    """Whether a module is a linear layer with one matrix, in any form; a layer made of layers is not."""
    compressed = isinstance(module, CompressedLinear) and module.matrix is not None
    return compressed or is_float(module)


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


def shares_matrix(head: nn.Module, embedding: nn.Module) -> bool:
    """Whether an output head and an embedding hold one matrix, in whatever form."""
    name = head.matrix if isinstance(head, CompressedLinear) else "weight"
    return name is not None and getattr(head, name) is getattr(embedding, name, None)


def output_scale_of(embedding: nn.Embedding) -> float:
    """What the model multiplies looked-up rows by (Gemma, BioGPT: the root of its width)."""
    scale = getattr(embedding, "scalar_embed_scale", None)
    return float(getattr(embedding, "embed_scale", 1.0) if scale is None else scale)


def linear_at(block: nn.Module, name: str) -> AnyLinear:
    """The linear layer of that name, in whatever form it is stored."""
    module = block.get_submodule(name)
    if not isinstance(module, AnyLinear):
        raise TypeError(f"{name} is a {type(module).__name__}, not a linear layer")
    return module

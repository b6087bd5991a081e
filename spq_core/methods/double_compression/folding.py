"""Scales of columns, folded into what stands before a matrix: a norm, or another matrix.

Dividing the input of matrices by powers of two and multiplying their columns by them changes nothing. Whether what makes the
input can be divided is tried: norms may add one to their weights, activations may not be linear, and others may read the same
input. Where the block's output would change, nothing is.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor, nn

from spq_core.formats.slicing import is_linear, linear_at, scale_rows
from spq_core.models.family import Family
from spq_core.streaming.inputs import input_of

CLOSE = 1e-4
"""How far outputs may lie apart, as a share of the largest: sums may be taken in another order."""


class _Maker(NamedTuple):
    """What makes an input."""

    name: str
    rows: int
    """Of its outputs, how many, the last ones, make it."""
    readers: int
    """Heads that read one of its outputs."""


def alike_in_groups(
    values: Float[Tensor, " n_in"], block: nn.Module, family: Family, name: str
) -> Float[Tensor, " n_in"]:
    """What a matrix receives of query heads that read the same value is scaled alike: by the largest of theirs."""
    maker = _values_before(block, family, name)
    if maker is None or maker.readers == 1:
        return values
    heads = _by_head(values, block, family, maker)
    return heads.amax(dim=1, keepdim=True).expand(heads.shape).flatten()


def fold(
    block: nn.Module,
    family: Family,
    reader: str,
    consumers: Sequence[nn.Linear],
    scales: Float[Tensor, " n_in"],
    run: Callable[[], Any],
) -> bool:
    """Divide what a group of matrices receives, and multiply their columns, where that is possible.

    Args:
        reader: name of a matrix that receives it.
        consumers: the linear layers that do: they, or first factors of pairs in their places.
        scales: powers of two, alike in groups.
        run: the block on some samples.

    Returns:
        Whether it was done.
    """
    maker = _maker(block, family, reader, run)
    if maker is None:
        return False
    module = block.get_submodule(maker.name)
    before = _values_of(module)
    weights = [one.weight.data for one in consumers]
    wanted = _first(run())
    if maker.readers > 1:
        factors = _by_head(scales, block, family, maker)[:, 0].flatten().reciprocal()
    else:
        factors = scales.reciprocal()
    if not _divide(block, maker, factors):
        return False
    _put(consumers, [weight * scales for weight in weights])
    if _alike(_first(run()), wanted):
        return True
    block.set_submodule(maker.name, module)
    for key, value in before.items():
        setattr(module, key, nn.Parameter(value, requires_grad=False))
    _put(consumers, weights)
    return False


def _put(linears: Sequence[nn.Linear], weights: Sequence[Tensor]) -> None:
    for linear, weight in zip(linears, weights, strict=True):
        linear.weight = nn.Parameter(weight, requires_grad=False)


def _values_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.data for name, value in module.named_parameters(recurse=False)}


def _maker(block: nn.Module, family: Family, reader: str, run: Callable[[], Any]) -> _Maker | None:
    width = linear_at(block, reader).in_features
    if reader == family.mlp_out:
        found: _Maker | None = _Maker(family.scored, width, 1)
    elif reader == family.attention[-1]:
        found = _values_before(block, family, reader)
    else:
        name = _norm_before(block, reader, run)
        found = None if name is None else _Maker(name, width, 1)
    return found


def _values_before(block: nn.Module, family: Family, name: str) -> _Maker | None:
    """The value projection in front of the output projection, where it is a matrix of its own."""
    if name != family.attention[-1] or not family.head_groups:
        return None
    values = family.attention[-2]
    width, rows = linear_at(block, name).in_features, linear_at(block, values).out_features
    return None if width % rows else _Maker(values, rows, width // rows)


def _by_head(
    values: Float[Tensor, " n_in"], block: nn.Module, family: Family, maker: _Maker
) -> Float[Tensor, "value_heads readers head_dim"]:
    attention: Any = block.get_submodule(family.attention_module)
    size = int(getattr(attention, "head_dim", maker.rows))
    return values.view(-1, maker.readers, size)


def _norm_before(block: nn.Module, reader: str, run: Callable[[], Any]) -> str | None:
    """The module with a number for each channel whose output a matrix receives."""
    given: dict[str, Tensor] = {}
    handles = [
        module.register_forward_hook(_keeping(given, name))
        for name, module in block.named_modules()
        if not list(module.children())
        and getattr(module, "weight", None) is not None
        and module.weight.ndim == 1
    ]
    try:
        received = input_of(block.get_submodule(reader), run)
    finally:
        for handle in handles:
            handle.remove()
    return next((name for name, output in given.items() if output is received), None)


def _keeping(given: dict[str, Tensor], name: str) -> Callable[[nn.Module, Any, Any], None]:
    def keep(_module: nn.Module, _arguments: Any, output: Any) -> None:
        given[name] = output

    return keep


def _divide(block: nn.Module, maker: _Maker, factors: Float[Tensor, " rows"]) -> bool:
    """Multiply the last outputs of a norm or matrix by factors; whether that is possible."""
    module = block.get_submodule(maker.name)
    if not is_linear(module):
        for key, value in _values_of(module).items():
            setattr(module, key, nn.Parameter(value * factors, requires_grad=False))
        return True
    every = factors.new_ones(module.out_features)
    every[-maker.rows :] = factors
    try:
        block.set_submodule(maker.name, scale_rows(module, every))
    except TypeError:  # a pair, say
        return False
    return True


def _first(output: Any) -> Tensor:
    found: Tensor = output[0] if isinstance(output, tuple) else output
    return found


def _alike(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).abs().max() <= CLOSE * other.abs().max())

"""From the layers an artifact holds to those that compute fastest here, right after loading.

`storage` goes the other way when a model is saved.
"""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import nn

from spq_core.formats.entropy.coded import Coded, CodedEmbedding, CodedLinear, tied_head
from spq_core.formats.int4.linear import Int4Embedding, Int4Linear, blocks_of
from spq_core.formats.int8.linear import Int8Embedding, Int8Linear, Int8Weight
from spq_core.formats.int8.matmul import is_aligned, pad_columns
from spq_core.formats.packed.linear import PackedEmbedding, PackedLinear, PackedWeight
from spq_core.memory import page_out

SIGN = -128
"""Unsigned codes become signed ones by turning their highest bit."""
BYTE = 8


def to_runtime(model: nn.Module) -> None:
    """Replace layers by equal ones that compute fast; tied ones share the result."""
    _expand_coded(model)
    _order_packed(model)
    seen: set[int] = set()
    for module in model.modules():
        if isinstance(module, Int8Weight) and id(module.codes) not in seen:
            seen.add(id(module.codes))
            if module.codes.device.type == "cpu" and not is_aligned(module.codes):
                stored = module.codes.data
                module.codes.data = stored.clone()
                _let_go(stored)


def tied_parts(model: nn.Module, tied: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Names of the parameters that modules tied in their stored form share now.

    Args:
        tied: names of stored tensors, those that are not stored before those that are.
    """
    now: dict[str, str] = {}
    for left, right in tied:
        here, there = left.rpartition(".")[0], right.rpartition(".")[0]
        theirs = dict(model.get_submodule(there).named_parameters(recurse=False))
        for name, own in model.get_submodule(here).named_parameters(recurse=False):
            if theirs.get(name) is own:
                now[f"{here}.{name}"] = f"{there}.{name}"
    return now


def _expand_coded(model: nn.Module) -> None:
    """Decode what is stored by entropy, each matrix once, in threads."""
    coded = [(name, module) for name, module in model.named_modules() if isinstance(module, Coded)]
    # Embeddings first: a head tied to one takes over its codes.
    coded.sort(key=lambda pair: isinstance(pair[1], CodedLinear))
    once = {id(module.packed): module for _, module in reversed(coded)}
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # zlib lets go of the interpreter
        made = dict(zip(once, pool.map(_expanded, once.values()), strict=True))
    for name, module in coded:
        found = made[id(module.packed)]
        if isinstance(module, CodedLinear) and isinstance(found, Int8Embedding):
            found = tied_head(found)
        model.set_submodule(name, found)


def _expanded(module: CodedEmbedding | CodedLinear) -> Int8Embedding | Int8Linear:
    made = module.expand()
    _let_go(module.packed)
    return made


def _order_packed(model: nn.Module) -> None:
    """Put packed codes in the order of the CPU's kernels, where there is one for them."""
    packed = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, PackedWeight) and module.packed.device.type == "cpu"
    ]
    packed.sort(key=lambda pair: isinstance(pair[1], PackedLinear))
    tables: dict[int, nn.Module] = {}
    for name, module in packed:
        key = id(module.packed)
        made = _tied(tables[key], module) if key in tables else _ordered(module)
        if made is None:
            continue
        if isinstance(module, PackedEmbedding):
            tables[key] = made
        model.set_submodule(name, made)
        _let_go(module.packed)


def _let_go(stored: torch.Tensor) -> None:
    """Loading maps files; what has been read from one stays in memory unless it is said that it need not."""
    if stored.device.type == "cpu":
        page_out(stored.data_ptr(), stored.nbytes)


def _ordered(module: PackedWeight) -> nn.Module | None:
    """The layer that computes; None if the stored one does."""
    if module.bits == BYTE:
        return _signed(module)
    parts = blocks_of(module)
    if parts is None:
        return None
    if isinstance(module, PackedEmbedding):
        return Int4Embedding(*parts, module.dtype_anchor.dtype, module.output_scale)
    assert isinstance(module, PackedLinear)  # noqa: S101 - there are two kinds
    return Int4Linear(*parts, None if module.bias is None else module.bias.data)


def _signed(module: PackedWeight) -> nn.Module | None:
    """8-bit codes around a middle, with one scale per row."""
    middle = -SIGN
    if module.scale.shape[1] != 1 or bool((module.zero.data != middle).any()):
        return None
    codes = module.packed.data[:, : module.n_in].view(torch.int8) ^ SIGN
    scale = module.scale.data[:, 0].float()
    if isinstance(module, PackedEmbedding):
        dtype = module.dtype_anchor.dtype
        return Int8Embedding(codes, scale, dtype, output_scale=module.output_scale)
    assert isinstance(module, PackedLinear)  # noqa: S101 - there are two kinds
    bias = None if module.bias is None else module.bias.data
    return Int8Linear(pad_columns(codes), scale, bias, in_features=module.n_in)


def _tied(table: nn.Module, head: PackedWeight) -> nn.Module:
    """The output head that shares an embedding's codes."""
    assert isinstance(head, PackedLinear)  # noqa: S101 - embeddings come first
    bias = None if head.bias is None else head.bias.data
    made: Int4Linear | Int8Linear
    if isinstance(table, Int4Embedding):
        made = Int4Linear(table.blocks.data, table.steps.data, table.shape, bias)
        made.blocks, made.steps = table.blocks, table.steps
    else:
        assert isinstance(table, Int8Embedding)  # noqa: S101 - there are two kinds
        made = tied_head(table)
        made.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
    return made

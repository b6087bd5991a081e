"""A model's layers from one form to another: as they are stored, and as they compute fastest here.

Tied layers stay tied: the head becomes what the embedding that shares its matrix makes of itself.
"""

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn

from spq_core.formats.decoding_ahead import AheadDecoder
from spq_core.formats.layer import CompressedEmbedding, CompressedLayer, Layout, let_go
from spq_core.formats.layouts import matrices_of, parse_layouts
from spq_core.formats.residency import spread_over

Convert = Callable[[CompressedLayer], CompressedLayer]


def to_runtime(model: nn.Module, coded_fraction: float = 0.0) -> None:
    """Replace the layers that an artifact holds by those that compute fastest here, right after loading.

    Args:
        coded_fraction: share of the coded bytes that stay coded, and are decoded at each use (see `residency`).
    """
    coded = _staying_coded(model, coded_fraction)
    decoder = AheadDecoder(torch.get_num_threads()) if coded else None

    def convert(layer: CompressedLayer) -> CompressedLayer:
        runtime = layer.to_resident(decoder) if id(layer) in coded else layer.to_runtime()
        if runtime is not layer and layer.matrix is not None:
            let_go(getattr(layer, layer.matrix))
        return runtime

    _convert(model, convert, in_threads=True)
    _convert(model, convert, in_threads=False)


def _staying_coded(model: nn.Module, fraction: float) -> frozenset[int]:
    """Layers by identity: linear ones that are no head of an embedding, which is looked up row by row."""
    if fraction <= 0:
        return frozenset()
    tables = {_identity(one) for one in model.modules() if isinstance(one, CompressedEmbedding)}
    layers = {
        name: one
        for name, one in model.named_modules()
        if isinstance(one, CompressedLayer) and one.can_stay_coded and _identity(one) not in tables
    }
    sizes = {name: getattr(one, one.matrix or "").nbytes for name, one in layers.items()}
    return frozenset(id(layers[name]) for name in spread_over(sizes, fraction))


def to_stored(block: nn.Module) -> None:
    """Replace layers by the form an artifact holds."""

    def convert(layer: CompressedLayer) -> CompressedLayer:
        return layer.to_stored()

    _convert(block, convert, in_threads=False)


def to_working(block: nn.Module) -> None:
    """Replace layers by a form that computes and can be stored again."""

    def convert(layer: CompressedLayer) -> CompressedLayer:
        return layer.to_working()

    _convert(block, convert, in_threads=True)


def stored_state(
    model: nn.Module, layouts: dict[str, Any], tied: Mapping[str, str]
) -> dict[str, Tensor] | None:
    """The state of a loaded model as its artifact stores it: the same codes give the same bytes.

    Args:
        layouts: of `quantization_config`, brought up to date in place.
        tied: names of tensors that are not stored.

    Returns:
        None where all of it computes in its stored form.
    """
    parsed = parse_layouts(layouts)
    converted = {path: one for path, one in matrices_of(parsed) if one.computes_otherwise}
    if not converted:
        return None
    state: dict[str, Tensor] = model.state_dict()
    present: dict[str, Layout] = {}
    for path, layout in converted.items():
        module = model.get_submodule(path)
        for name, _ in module.named_parameters(recurse=False):
            if name != "bias":
                state.pop(f"{path}.{name}", None)
        stored = layout.stored(module)
        present[path] = stored.layout
        state |= {f"{path}.{name}": tensor for name, tensor in stored.tensors.items()}
    layouts.update(
        {path: _updated(path, one, present).model_dump() for path, one in parsed.items()}
    )
    return {name: tensor for name, tensor in state.items() if name not in tied}


def _updated(path: str, layout: Layout, present: Mapping[str, Layout]) -> Layout:
    if within := layout.within():
        parts = {name: _updated(f"{path}.{name}", part, present) for name, part in within.items()}
        return layout.model_copy(update=parts)
    return present.get(path, layout)


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


def _convert(root: nn.Module, convert: Convert, *, in_threads: bool) -> None:
    """Convert each matrix once.

    Args:
        in_threads: which layers, by whether they let go of the interpreter's lock.
    """
    layers = [
        (name, module)
        for name, module in root.named_modules()
        if isinstance(module, CompressedLayer)
        and module.matrix is not None
        and module.expands_in_threads == in_threads
    ]
    # Embeddings first: a head tied to one takes over what it has become.
    layers.sort(key=lambda pair: not isinstance(pair[1], CompressedEmbedding))
    once: dict[int, CompressedLayer] = {}
    for _, layer in layers:
        once.setdefault(_identity(layer), layer)
    users = {id(layer): _identity(layer) for _, layer in layers}
    with ThreadPoolExecutor(torch.get_num_threads() if in_threads else 1) as pool:
        converted = dict(zip(once, pool.map(convert, once.values()), strict=True))
    for name, layer in layers:
        first, become = once[users[id(layer)]], converted[users[id(layer)]]
        if become is first:
            continue
        if layer is not first and isinstance(become, CompressedEmbedding):
            become = become.tied_head(getattr(layer, "bias", None))
        root.set_submodule(name, become)


def _identity(layer: CompressedLayer) -> int:
    assert layer.matrix is not None  # noqa: S101 - chosen by that
    return id(getattr(layer, layer.matrix))

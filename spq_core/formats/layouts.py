"""Layouts of all forms: parsed from config.json, noted of a block, and made into empty layers."""

from collections.abc import Iterator, Mapping
from functools import reduce
from operator import or_
from typing import Annotated, Any

import torch
from pydantic import Field, TypeAdapter, ValidationError
from torch import nn

from spq_core.errors import ArtifactError
from spq_core.formats.adapted.linear import AdaptedLayout
from spq_core.formats.layer import Layout
from spq_core.formats.low_rank.linear import LowRankLayout
from spq_core.formats.registry import MATRIX_FORMS, layout_of

COMPOSED_FORMS = (AdaptedLayout, LowRankLayout)
"""Forms made of layers in other forms: one line each."""

LAYOUTS = (
    *(layout for form in MATRIX_FORMS for layout in form if layout is not None),
    *COMPOSED_FORMS,
)
_AnyLayout: Any = Annotated[reduce(or_, LAYOUTS), Field(discriminator="kind")]
_ADAPTER: TypeAdapter[dict[str, Layout]] = TypeAdapter(dict[str, _AnyLayout])


def parse_layouts(document: Mapping[str, Any]) -> dict[str, Layout]:
    """Read module layouts from config.json.

    Raises:
        ArtifactError: an entry is malformed or of a kind this version does not know.
    """
    try:
        return _ADAPTER.validate_python(document)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ArtifactError(f"quantization_config.modules.{where}: {first['msg']}") from None


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
        root.set_submodule(name, layout.build(dtype))


def changed_layouts(path: str, block: nn.Module, original: nn.Module) -> dict[str, Layout]:
    """Layouts of the block's modules that the architecture alone would not give."""
    before = dict(original.named_modules())
    changed: dict[str, Layout] = {}
    inside: tuple[str, ...] = ()
    for name, module in block.named_modules():
        layout = layout_of(module)
        if layout is None or name.startswith(inside):
            continue
        if layout.within():
            inside = (*inside, f"{name}.")
        if layout != layout_of(before[name]):
            changed[f"{path}.{name}" if path else name] = layout
    return changed


def matrices_of(layouts: Mapping[str, Layout]) -> Iterator[tuple[str, Layout]]:
    """Path and layout of every matrix, those within layers included."""
    for path, layout in layouts.items():
        if within := layout.within():
            yield from matrices_of({f"{path}.{name}": part for name, part in within.items()})
        else:
            yield path, layout

"""The stored forms of one matrix there are: one line each.

A form is a folder with its layers and their layouts (`layer`). What is here may also stand within forms that are
composed of layers (`layouts`).
"""

from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import nn

from spq_core.formats.deflated.linear import DeflatedEmbeddingLayout, DeflatedLayout
from spq_core.formats.dense.layout import DenseLayout, dense_layout
from spq_core.formats.ggml.linear import GgmlEmbeddingLayout, GgmlLayout
from spq_core.formats.int8.linear import Int8EmbeddingLayout, Int8Layout
from spq_core.formats.layer import CompressedLayer, Layout
from spq_core.formats.packed.linear import PackedEmbeddingLayout, PackedLayout
from spq_core.formats.range_coded.linear import RangeCodedEmbeddingLayout, RangeCodedLayout


class Form(NamedTuple):
    """Layouts of the layers that hold a matrix in this form."""

    linear: type[Layout]
    embedding: type[Layout] | None
    """None where an embedding is not stored so."""


MATRIX_FORMS = (
    Form(DenseLayout, None),
    Form(Int8Layout, Int8EmbeddingLayout),
    Form(PackedLayout, PackedEmbeddingLayout),
    Form(DeflatedLayout, DeflatedEmbeddingLayout),
    Form(GgmlLayout, GgmlEmbeddingLayout),
    Form(RangeCodedLayout, RangeCodedEmbeddingLayout),
)

if TYPE_CHECKING:
    MatrixLayout = Layout
else:
    MatrixLayout = reduce(or_, (form.linear for form in MATRIX_FORMS))


def linear_layout(layer: nn.Module) -> Any:
    """The layout of a linear layer within another.

    Raises:
        TypeError: it is in a form that is never written.
    """
    layout = layout_of(layer)
    if layout is None:
        raise TypeError(f"a {type(layer).__name__} has no stored form")
    return layout


def layout_of(module: nn.Module) -> Layout | None:
    """The layout of a compressed layer or of a plain nn.Linear; None for anything else."""
    if isinstance(module, CompressedLayer):
        return module.layout()
    return dense_layout(module) if isinstance(module, nn.Linear) else None

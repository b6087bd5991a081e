"""What a stored form is made of: a layout, which is data, and the layer that the layout describes.

A layout is written into config.json and read before any weight is: the layer is made of it on the meta device
and filled from safetensors without a floating-point copy ever existing. A layer knows its layout, its weight
in floating point, and what it becomes when it is written and when it is to compute.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, NamedTuple, Self, cast

import torch
from jaxtyping import Float, Int64
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from spq_core.formats.exact_parts import ExactParts
from spq_core.memory import page_out

Size = Annotated[int, Field(ge=1, le=1 << 24)]
ByteCount = Annotated[int, Field(ge=1, le=1 << 40)]
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
ALL = slice(None)


class StoredParts(NamedTuple):
    """What an artifact holds of a layer."""

    layout: "Layout"
    tensors: dict[str, Tensor]
    """By name within the layer."""


class Layout(BaseModel):
    """The shape of one layer, without values."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    """Tells layouts apart in config.json."""
    shared_parts: ClassVar[tuple[str, ...]] = ()
    """Tensors that an output head takes over from the embedding it is tied to."""
    computes_otherwise: ClassVar[bool] = False
    """Whether the layer may become one of another form when it is loaded."""

    def build(self, dtype: torch.dtype) -> nn.Module:
        """Make the layer, without values, on the meta device.

        Args:
            dtype: of floating-point weights and biases; scales have their own.
        """
        raise NotImplementedError

    def within(self) -> "Mapping[str, Layout]":
        """Layouts of the layers it is composed of, by name."""
        return {}

    @property
    def weight_bits(self) -> float:
        """Bits of its weights as they are stored, without scales, zero points and padding."""
        return sum(layout.weight_bits for layout in self.within().values())

    @property
    def adapter_bits(self) -> float:
        """Bits of adapters beside them."""
        return sum(layout.adapter_bits for layout in self.within().values())

    def with_layers(self, layouts: "Mapping[str, Layout]") -> Self:
        """The same of other layers."""
        return self.model_copy(update=dict(layouts))

    def stored(self, layer: Any) -> StoredParts:
        """What is written of the layer that it became when it was loaded, exactly as it was read.

        The layout is brought up to date: another zlib may pack the same codes in another number of bytes.
        """
        raise NotImplementedError


class CompressedLayer(ExactParts, ABC):
    """A layer whose weight is not one floating-point matrix."""

    exact: ClassVar[tuple[str, ...]] = ()
    matrix: ClassVar[str | None] = None
    """Name of the parameter that holds the codes, which a tied layer shares; None for a layer made of layers."""
    expands_in_threads: ClassVar[bool] = False
    """Whether `to_runtime` lets go of the interpreter's lock, and uses one core."""

    can_stay_coded: ClassVar[bool] = False
    """Whether `to_resident` gives a layer that is decoded at each use."""

    def layout(self) -> Layout | None:
        """Its layout; None for a form that is never written."""
        return None

    def to_stored(self) -> "CompressedLayer":
        """The layer as an artifact holds it; itself where that is so already."""
        return self

    def to_runtime(self) -> "CompressedLayer":
        """The layer that computes fastest here; itself where that is so already."""
        return self

    def to_resident(self, decoder: Any) -> "CompressedLayer":
        """A layer that computes and stays coded in memory; what `to_runtime` gives where there is none.

        Args:
            decoder: the model's (`decoding_ahead.AheadDecoder`).
        """
        del decoder
        return self.to_runtime()

    def to_working(self) -> "CompressedLayer":
        """A layer that computes and can be stored again; itself where that is so already."""
        return self


class CompressedLinear(CompressedLayer):
    """y = W x + bias."""

    bias: Any
    """A parameter of n_out values, or None."""

    @property
    @abstractmethod
    def in_features(self) -> int:
        """Number of input columns."""

    @property
    @abstractmethod
    def out_features(self) -> int:
        """Number of output rows."""

    @property
    def weight(self) -> Tensor:
        """No numbers, only rows, a dtype and a device.

        Some models ask their head which inputs it takes (Mamba), and transformers makes a tied head's bias as long as it has rows.
        """
        found: Any = torch.empty(self.out_features, 0, device=next(self.parameters()).device)
        found._is_hf_initialized = True  # noqa: SLF001 - there is nothing to draw at random
        return cast("Tensor", found)

    @abstractmethod
    def float_weight(self, rows: slice = ALL) -> Float[Tensor, "rows n_in"]:
        """The weight in float32, or some of its rows."""

    def keep_rows(self, kept: Int64[Tensor, " k"]) -> "CompressedLinear":
        """The layer with only the output rows `kept`.

        Raises:
            TypeError: this form is not cut.
        """
        del kept
        raise TypeError(f"rows of a {type(self).__name__} are not cut; prune first")

    def scale_rows(self, factors: Float[Tensor, " out"]) -> "CompressedLinear":
        """The layer with its outputs multiplied by powers of two, which changes no code.

        Raises:
            TypeError: this form is not scaled.
        """
        del factors
        raise TypeError(f"rows of a {type(self).__name__} are not scaled")

    def keep_columns(self, kept: Int64[Tensor, " k"]) -> "CompressedLinear":
        """The layer with only the input columns `kept`; bias and scales are unchanged.

        Raises:
            TypeError: this form is not cut.
        """
        del kept
        raise TypeError(f"columns of a {type(self).__name__} are not cut; prune first")


class CompressedEmbedding(CompressedLayer):
    """Rows that are widened when they are looked up."""

    output_scale: float

    @property
    def weight(self) -> "SingleRows":
        """Rows one by one: some models take that of the padding (Gemma 4)."""
        return SingleRows(self)

    @abstractmethod
    def tied_head(self, bias: Tensor | None = None) -> CompressedLinear:
        """The output head that shares the codes and scales."""


class SingleRows:
    """Stands for the weight of a table of embeddings where single rows of it are taken."""

    _is_hf_initialized = True
    """For transformers: there is nothing to draw at random."""

    def __init__(self, table: CompressedEmbedding) -> None:
        """Take the table."""
        self._table = table

    @property
    def device(self) -> torch.device:
        """Where the table is."""
        return next(self._table.parameters()).device

    def __getitem__(self, index: int | tuple[Any, ...]) -> Tensor:
        """A row, or some of its columns, as it was before the model scales it.

        Raises:
            TypeError: more than a row is asked for.
        """
        row, *columns = index if isinstance(index, tuple) else (index,)
        if not isinstance(row, int):
            raise TypeError("a compressed table of embeddings gives its rows one by one")
        found: Tensor = self._table(torch.tensor([row], device=self.device))[0]
        found = found / self._table.output_scale
        return found[tuple(columns)] if columns else found


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor without values, for a layer that a layout describes."""
    return torch.empty(*shape, dtype=dtype, device="meta")


def constant(tensor: Tensor | None) -> nn.Parameter | None:
    """A parameter without gradient."""
    return None if tensor is None else nn.Parameter(tensor, requires_grad=False)


def let_go(stored: Tensor) -> None:
    """Loading maps files; what has been read from one stays in memory unless it is said that it need not."""
    if stored.device.type == "cpu":
        page_out(stored.data_ptr(), stored.nbytes)


def scaled_rows(rows: Tensor, output_scale: float, dtype: torch.dtype) -> Tensor:
    """Looked-up rows as the model wants them: some scale them, by a factor rounded to their dtype."""
    if output_scale == 1.0:
        return rows.to(dtype)
    return (rows * torch.tensor(output_scale, dtype=dtype).to(rows)).to(dtype)

"""A tensor of a model that files hold in parts. Free of torch."""

from dataclasses import dataclass

from spq_core.models.weight_files import WeightHeader

WIDENED = "BF16"


@dataclass(frozen=True, slots=True)
class Whole:
    """One tensor as the model has it."""

    header: WeightHeader
    """Its dtype and shape once it is widened, and the file of its codes."""
    codes: str
    """The name of what is stored: codes, or the tensor itself."""
    scales: str = ""
    """The name of the scales; empty for a tensor that is stored as it is."""
    rule: str = ""
    """How codes and scales become numbers, by its name in `values.RULES`."""
    block: tuple[int, int] | None = None
    """Rows and columns that share a scale, where the settings say so."""


def as_stored(name: str, header: WeightHeader) -> Whole:
    """A tensor that is not quantized."""
    return Whole(header, name)

"""What a recipe says about quantization. Free of torch."""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from spq_core.formats.ggml.types import BLOCK_TYPES, BlockType, BlockTypeName, block_type, fitting
from spq_core.formats.packed.bits import Bits
from spq_core.formats.profiles.profile import Profile
from spq_core.methods.settings import PlannedPart, StageSettings, Toy
from spq_core.models.shapes import Matrix, ModelShapes

PADDED_COLUMNS = 16
CODES_PER_PACK = 8
FLOAT_BYTES = 4
ROUNDED_SECONDS = 0.2e-6
"""Per weight, with error feedback."""
TRELLIS_SECONDS = 4e-9
"""Per weight and state of a trellis."""
EXACT_SECONDS = 0.35e-9
"""Per row and cubed number of columns, in the exact order of each row."""


class ScaleMode(StrEnum):
    """How many scales a quantized matrix gets, and which matrices get which."""

    TENSOR = "tensor"
    CHANNEL = "channel"
    MIX_NAME = "mix_name"
    MIX_PERCENTILE = "mix_percentile"
    MIX_MEANSTD = "mix_meanstd"


class QuantizeSettings(StageSettings):
    """Store weights in fewer bits.

    `round`: each weight to the nearest code. `gptq`: with error feedback (arXiv:2210.17323). `obc`: the same, each row by itself (Optimal Brain
    Compression, arXiv:2208.11580). `entropy`: with error feedback onto a lattice whose codes are stored by entropy; the recipe's
    `target` sets how fine it is.
    """

    earlier_names: ClassVar[Mapping[str, str]] = {
        "strongest_first": "act_order",
        "leave_whole": "keep_dense_with_spare_bytes",
    }

    outcome: ClassVar[str] = "matrices were quantized"

    type: Literal["quantize"]
    method: Literal["round", "gptq", "obc", "entropy"] = "round"
    """`round`: to the nearest code. `gptq`: with error feedback (arXiv:2210.17323). `obc`: with error feedback, each row by
    itself (arXiv:2208.11580). `entropy`: with error feedback onto a lattice whose codes are stored by entropy."""
    bits: Bits = 8
    """Width of a code; `entropy` has none."""
    levels: tuple[Bits, ...] = ()
    """Widths of which each matrix gets one, in place of `bits`: those that lose least together at the target's bytes, by expected loss
    (a database of matrices and widths and dynamic programming over it, arXiv:2208.11580, section 5)."""
    types: tuple[BlockTypeName, ...] = ()
    """Block types of ggml, for profile gguf, in place of bits, groups and zero points: one for all matrices, or two and more, of which
    each matrix gets the one that loses least at the target's bytes. Rows that are not whole blocks of a type get the next larger one that fits."""
    table_type: BlockTypeName | None = None
    """With one of `types`: the type of embedding and head, if it is to be another one."""
    mode: ScaleMode = ScaleMode.CHANNEL
    """How many scales a matrix gets; the modes by name are those of the paper."""
    group_size: Annotated[int, Field(ge=8, le=1 << 16, multiple_of=8)] | None = None
    """Columns that share a scale; all of a row when left out."""
    symmetric: bool = True
    """Codes around zero; with `false` a group has a zero point, too."""
    act_order: bool = True
    """Round the columns with the strongest inputs first (GPTQ). With `obc`: what the other weights of its row leave least freedom;
    without it what costs least, as published."""
    scale_search: bool = False
    """Choose scales by the output error they leave, not by the largest weight."""
    sparsity: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of weights set to zero on the way (SparseGPT, arXiv:2301.00774). Zeros take no fewer
    bytes in packed codes; N:M patterns are not a format of ours, as no runtime here gains by them."""
    exact_columns: Annotated[int, Field(ge=1, le=4096)] = 1024
    """With `obc`, matrices with more columns are rounded in one order for all rows, as by `gptq`: time goes with the cube of their number."""
    trellis_states: Literal[1, 8, 16, 32, 64] = 64
    """With `entropy`: states of the trellis that codes follow (trellis-coded quantization), where they fit into 8 bits along it. With 64, a code takes
    0.2 bit less at the same error than free codes, which 1 stands for."""
    damping: Annotated[float, Field(gt=0.0, le=1.0)] = 0.01
    """Share of each input's energy added to it before inversion."""
    embedding: bool = True
    """Quantize the token embedding too; a tied head then shares its codes."""
    keep_dense_with_spare_bytes: bool = True
    """With `entropy`: spend bytes that the finest lattices leave over on matrices that stay in the
    source's dtype. Without it the target is a limit, and every matrix runs on 8-bit kernels."""

    @field_validator("method", mode="before")
    @classmethod
    def _by_its_present_name(cls, method: Any) -> Any:
        return "entropy" if method == "rate" else method

    @model_validator(mode="after")
    def _fits_the_method(self) -> Self:
        if self.types:
            self._check_types()
        elif self.table_type is not None:
            raise ValueError("table_type goes with types")
        if self.mode != ScaleMode.CHANNEL and not self.is_plain:
            raise ValueError(f"mode {self.mode.value} is for plain symmetric 8-bit rounding only")
        if self.levels and (
            self.by_entropy or len(set(self.levels)) < len(self.levels) or len(self.levels) == 1
        ):
            raise ValueError(
                "levels are two or more different widths, for method round, gptq or obc"
            )
        if self.sparsity and not self.has_feedback:
            raise ValueError("sparsity needs method gptq or obc, which pay for removed weights")
        return self

    def _check_types(self) -> None:
        """Types say what the other keys would."""
        if self.method not in {"round", "gptq"}:
            raise ValueError(f"types are for method round or gptq, not {self.method}")
        given = {
            "bits": self.bits != 8,  # noqa: PLR2004
            "levels": bool(self.levels),
            "group_size": self.group_size is not None,
            "symmetric": not self.symmetric,
            "sparsity": self.sparsity > 0,
            "mode": self.mode != ScaleMode.CHANNEL,
        }
        other = next((name for name, is_given in given.items() if is_given), None)
        if other is not None:
            raise ValueError(f"types say how codes are stored; leave out {other}")
        if len(set(self.types)) < len(self.types):
            raise ValueError("types are all different")
        if len(self.types) > 1 and self.table_type is not None:
            raise ValueError(
                "with several types the target chooses that of embedding and head, too; leave out table_type"
            )

    @field_validator("types")
    @classmethod
    def _smallest_first(cls, types: tuple[BlockTypeName, ...]) -> tuple[BlockTypeName, ...]:
        order = [kind.name for kind in BLOCK_TYPES]
        return tuple(sorted(types, key=order.index))

    @property
    def open_levels(self) -> tuple[int, ...]:
        """Those of which each matrix gets one: widths in bits, or places among `types`."""
        return tuple(range(len(self.types))) if len(self.types) > 1 else self.levels

    def type_of(self, columns: int, level: int = 0, *, is_table: bool = False) -> BlockType | None:
        """Ggml's type for a matrix with so many columns, with one of `types`; None where none has whole blocks in its rows."""
        name = self.types[level]
        if is_table and self.table_type is not None:
            name = self.table_type
        return fitting(block_type(name), columns)

    @property
    def is_plain(self) -> bool:
        """Whether this is symmetric 8-bit rounding with one scale per row or matrix."""
        return (
            self.method == "round"
            and self.bits == 8  # noqa: PLR2004
            and not self.levels
            and not self.types
            and self.group_size is None
            and self.symmetric
            and not self.scale_search
        )

    @property
    def is_auto(self) -> bool:
        """Whether widths follow from the target."""
        return bool(self.open_levels)

    @property
    def planned(self) -> PlannedPart | None:
        """Widths, if they are open."""
        return "widths" if self.open_levels else None

    @property
    def has_feedback(self) -> bool:
        """Whether later weights make up for the rounding of earlier ones, onto a grid."""
        return self.method in {"gptq", "obc"}

    def is_exact(self, n_in: int) -> bool:
        """Whether the rows of a matrix are each rounded in their own order."""
        return self.method == "obc" and n_in <= self.exact_columns

    @property
    def by_entropy(self) -> bool:
        """Whether codes are stored by entropy, so that a target sets how fine they are."""
        return self.method == "entropy"

    @property
    def quantizes(self) -> bool:
        """Every method of it."""
        return True

    @property
    def needs_calibration(self) -> bool:
        """Whether rounding looks at inputs."""
        return self.method != "round" or self.scale_search or self.is_auto

    def order_error(self, before: Sequence[StageSettings], after: Sequence[StageSettings]) -> str:
        """Only plain codes can be cut afterwards; adapters may stand beside any."""
        del before
        if not self.is_plain and not all(stage.leaves_codes for stage in after):
            return (
                "quantize must be the last stage, unless it is plain 8-bit rounding or only recover with adapters kept "
                "comes after it"
            )
        return ""

    def profile_error(self, profile: Profile) -> str:
        """What the format and its readers do not hold."""
        if self.types or "ggml" in profile.forms:
            return self._blocks_error(profile)
        by_matrix = self.mode != ScaleMode.CHANNEL and "int8" not in profile.forms
        by_entropy = self.by_entropy and "range_coded" not in profile.forms
        zero_points = not self.symmetric and not profile.zero_points
        tables = self.embedding and not profile.tables
        reasons = {
            f"codes stored by entropy have no form in {profile.format_name}": by_entropy,
            f"{self.bits} bits have no kernels in its readers": self.bits not in profile.bits
            and not self.levels,
            "all matrices have one width there; leave out levels": bool(self.levels)
            and not profile.tables,
            "its readers load no zero points; set symmetric: true": zero_points,
            "scales are per row or group there": by_matrix,
            "embedding and head stay as they are there; set embedding: false": tables,
        }
        return next((reason for reason, holds in reasons.items() if holds), "")

    def _blocks_error(self, profile: Profile) -> str:
        if "ggml" not in profile.forms:
            return f"block types have no form in {profile.format_name}; they are for profile gguf"
        if not self.types:
            return f"matrices are stored in block types there; set types, for instance [{BLOCK_TYPES[-1].name}]"
        return ""

    def shapes_error(self, shapes: ModelShapes, profile: Profile) -> str:
        """Some readers want whole groups."""
        size = self.group_size
        if size is None or not profile.whole_groups:
            return ""
        for index, layer in enumerate(shapes.layers):
            name = next((name for name, part in sorted(layer.items()) if part.n_in % size), None)
            if name is not None:
                return (
                    f"profile {profile.name}: {name} of layer {index} has {layer[name].n_in} columns, which groups of "
                    f"{size} do not divide; choose another group_size"
                )
        return ""

    def seconds(self, shapes: ModelShapes) -> float:
        """Of rounding with error feedback; plain rounding takes as long as copying."""
        if not self.needs_calibration:
            return 0.0
        exact = sum(
            matrix.n_out * matrix.n_in**3
            for layer in shapes.layers
            for matrix in layer.values()
            if self.is_exact(matrix.n_in)
        )
        passes = 2 if self.sparsity else 1
        along = TRELLIS_SECONDS * self.trellis_states if self.by_entropy else 0.0
        return (ROUNDED_SECONDS + along) * shapes.elements + EXACT_SECONDS * passes * exact

    def for_preflight(self, toy: Toy, *, fixed: bool) -> Self:
        """With groups that the toy has."""
        changes: dict[str, Any] = {}
        if self.group_size is not None:
            changes["group_size"] = min(self.group_size, toy.group)
        if fixed and self.levels:
            changes |= {"levels": (), "bits": min(self.levels)}
        if fixed and len(self.types) > 1:
            changes["types"] = self.types[:1]
        return self.model_copy(update=changes)

    def matrix_bytes(self, matrix: Matrix, shapes: ModelShapes, profile: Profile) -> float:
        """Stored bytes of a decoder layer's matrix, where bits are given."""
        level = 0 if self.types else self.bits
        return self.bytes_of(matrix, level, shapes.item_bytes, profile)

    def bytes_of(self, matrix: Matrix, level: int, item_bytes: float, profile: Profile) -> float:
        """Stored bytes of a matrix at a width, or in one of `types`."""
        if self.types:
            return self._blocks_bytes(matrix, self.type_of(matrix.n_in, level), item_bytes)
        bits = level
        if self.is_plain and "int8" in profile.forms:
            scales = 1 if self.mode == ScaleMode.TENSOR else matrix.n_out
            return _padded(matrix.n_in, PADDED_COLUMNS) * matrix.n_out + FLOAT_BYTES * scales
        size = min(self.group_size or matrix.n_in, matrix.n_in)
        scales = matrix.n_out * -(-matrix.n_in // size)
        codes = matrix.n_out * _padded(matrix.n_in, CODES_PER_PACK) * bits / 8
        return codes + (profile.scale_bytes or item_bytes) * scales

    def _blocks_bytes(self, matrix: Matrix, kind: BlockType | None, item_bytes: float) -> float:
        if kind is None:
            return matrix.elements * item_bytes
        return float(matrix.n_out * kind.row_bytes(matrix.n_in))

    def tables_bytes(self, shapes: ModelShapes, profile: Profile) -> float:
        """Stored bytes of embedding and head."""
        tables = [shapes.embedding] if shapes.head is None else [shapes.embedding, shapes.head]
        plain = sum(table.elements for table in tables) * shapes.item_bytes
        if not profile.tables:
            return plain
        coded = [self._table_bytes(table, shapes, profile) for table in tables]
        if self.embedding:
            return sum(coded)
        # The embedding stays; a tied head gets codes of its own if rounding is plain, and stays with it if not.
        if shapes.head is not None:
            return shapes.embedding.elements * shapes.item_bytes + coded[1]
        return plain + (coded[0] if self.is_plain else 0)

    def _table_bytes(self, table: Matrix, shapes: ModelShapes, profile: Profile) -> float:
        if self.types:
            kind = self.type_of(table.n_in, is_table=True)
            return self._blocks_bytes(table, kind, shapes.item_bytes)
        if self.is_plain:
            return table.elements + FLOAT_BYTES * table.n_out
        return self.matrix_bytes(table, shapes, profile)


def _padded(columns: int, multiple: int) -> int:
    return -(-columns // multiple) * multiple

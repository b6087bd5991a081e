"""Block types of ggml, which GGUF files hold: how many columns share what. Free of torch.

A row is cut into blocks; a block holds one or two numbers in float16 and a code per column. In types of 256 columns these numbers
scale further ones, of 6 or 8 bits, that groups of 16 or 32 columns have (ggml's `ggml-common.h` has the layouts).
"""

from dataclasses import dataclass
from typing import Literal

NONLINEAR = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
"""What the codes of the IQ4 types stand for, in steps."""

BlockTypeName = Literal[
    "Q3_K", "IQ4_XS", "Q4_0", "IQ4_NL", "Q4_K", "Q4_1", "Q5_0", "Q5_K", "Q5_1", "Q6_K", "Q8_0"
]
"""From the smallest to the largest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockType:
    """How a block of a row is stored."""

    name: BlockTypeName
    number: int
    """ggml's own (`enum ggml_type`)."""
    columns: int
    """Of a block."""
    bytes: int
    """Of a block."""
    group: int
    """Columns that share a step."""
    low: int
    """The lowest code, in steps."""
    high: int
    values: tuple[int, ...] = ()
    """What codes stand for, in steps, where they are not all integers from `low` to `high`."""
    offsets: bool = False
    """Whether a group has an offset beside its step."""
    scale_low: int = 0
    """In blocks of groups: the least factor that makes a group's step of the block's; 0 where steps have one sign."""
    scale_high: int = 0
    """In blocks of groups: the largest factor; 0 in blocks that are one group."""

    @property
    def bits(self) -> float:
        """Of a weight, all told."""
        return 8 * self.bytes / self.columns

    @property
    def groups(self) -> int:
        """Of a block."""
        return self.columns // self.group

    def fits(self, columns: int) -> bool:
        """Whether rows of so many columns are whole blocks."""
        return columns % self.columns == 0

    def row_bytes(self, columns: int) -> int:
        """Of a row that is whole blocks."""
        return columns // self.columns * self.bytes


BLOCK_TYPES: tuple[BlockType, ...] = (
    BlockType(name="Q3_K", number=11, columns=256, bytes=110, group=16, low=-4, high=3, scale_low=-32, scale_high=31),
    BlockType(
        name="IQ4_XS", number=23, columns=256, bytes=136, group=32, low=-127, high=113, values=NONLINEAR,
        scale_low=-32, scale_high=31,
    ),
    BlockType(name="Q4_0", number=2, columns=32, bytes=18, group=32, low=-8, high=7),
    BlockType(name="IQ4_NL", number=20, columns=32, bytes=18, group=32, low=-127, high=113, values=NONLINEAR),
    BlockType(name="Q4_K", number=12, columns=256, bytes=144, group=32, low=0, high=15, offsets=True, scale_high=63),
    BlockType(name="Q4_1", number=3, columns=32, bytes=20, group=32, low=0, high=15, offsets=True),
    BlockType(name="Q5_0", number=6, columns=32, bytes=22, group=32, low=-16, high=15),
    BlockType(name="Q5_K", number=13, columns=256, bytes=176, group=32, low=0, high=31, offsets=True, scale_high=63),
    BlockType(name="Q5_1", number=7, columns=32, bytes=24, group=32, low=0, high=31, offsets=True),
    BlockType(name="Q6_K", number=14, columns=256, bytes=210, group=16, low=-32, high=31, scale_low=-128, scale_high=127),
    BlockType(name="Q8_0", number=8, columns=32, bytes=34, group=32, low=-127, high=127),
)  # fmt: skip
"""From the smallest to the largest."""

INSTEAD: dict[str, BlockTypeName] = {
    "Q3_K": "IQ4_NL", "IQ4_XS": "IQ4_NL", "Q4_K": "Q4_1", "Q5_K": "Q5_1", "Q6_K": "Q8_0",
}  # fmt: skip
"""What stands in for a type whose blocks do not divide a row: the smallest of 32 columns that loses no more."""


def block_type(name: str) -> BlockType:
    """The type of that name.

    Raises:
        KeyError: there is none.
    """
    return _BY_NAME[name]


def fitting(kind: BlockType, columns: int) -> BlockType | None:
    """The type for rows of so many columns; None where no type has whole blocks in them."""
    if kind.fits(columns):
        return kind
    other = INSTEAD.get(kind.name)
    return fitting(_BY_NAME[other], columns) if other is not None else None


_BY_NAME: dict[str, BlockType] = {kind.name: kind for kind in BLOCK_TYPES}

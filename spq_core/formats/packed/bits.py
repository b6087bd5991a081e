"""Widths of packed codes. Free of torch.

Packing takes any width up to 8 (`packed.linear`); a width listed here is one that recipes may ask for, and that layouts
are read with.
"""

from typing import Literal

Bits = Literal[3, 4, 8]

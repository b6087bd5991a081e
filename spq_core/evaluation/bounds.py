"""How much scoring holds in memory at once. Free of torch."""

GROUP_BYTES = 256 << 20
"""Of hidden states that pass a layer before the next one is loaded."""
LOGITS_AT_ONCE = 1 << 23
"""Positions times vocabulary."""
LEAST_POSITIONS = 96
"""At once: kernels for a few rows, which serve decoding, round what they are given."""
WIDE_HEAD_BYTES = 512 << 20
"""A head that takes no more in float32 is widened once, not at each use."""

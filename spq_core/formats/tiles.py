"""Products with a weight that is widened some rows at a time, so that no floating-point copy of a whole matrix exists."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from spq_core.formats.product_dtype import product_dtype

TILE_BYTES = 4 << 20
LEAST_ROWS = 64


def by_tiles(
    x: Float[Tensor, "*batch n_in"],
    n_out: int,
    rows_of: Callable[[slice], Float[Tensor, "rows n_in"]],
    bias: Tensor | None,
) -> Float[Tensor, "*batch n_out"]:
    """X @ W.T + bias in x's dtype.

    Args:
        rows_of: some rows of W, widened.
    """
    rows = max(LEAST_ROWS, TILE_BYTES // (4 * x.shape[-1])) if x.device.type == "cpu" else n_out
    wide = x.to(product_dtype(x))
    tiles = [
        functional.linear(wide, rows_of(slice(start, start + rows)).to(wide.dtype))
        for start in range(0, n_out, rows)
    ]
    product = (tiles[0] if len(tiles) == 1 else torch.cat(tiles, dim=-1)).to(x.dtype)
    return product if bias is None else product + bias.to(product.dtype)

"""Whether weights are numbers."""

import math

from torch import Tensor


def all_finite(tensor: Tensor) -> bool:
    """No NaN and no infinity. Both show in the extremes, which are found without a copy."""
    if not tensor.numel():
        return True
    lowest, highest = tensor.detach().aminmax()
    return math.isfinite(lowest) and math.isfinite(highest)

"""Which share of an MLP's neurons each layer gives up. Free of torch."""

import math
from collections.abc import Sequence


def neurons_kept(neurons: int, ratio: float, multiple: int = 1) -> int:
    """How many of a layer's neurons stay: int(n·(1 − ratio)), at least one.

    Rounded up to a multiple of `multiple`, or to all of them.
    """
    kept = max(1, int(neurons * (1 - ratio)))
    return min(-(-kept // multiple) * multiple, neurons)


def layer_ratios(
    mean_activations: Sequence[float], max_ratio: float, min_ratio: float = 0.0
) -> tuple[float, ...]:
    """Return a pruning ratio per layer, high where activations are small (arXiv:2602.18420).

    With L_i = ln(a_i + 1e-6):  p_i = p_min + (max L − L_i)/(max L − min L + 1e-8) · (p_max − p_min).
    The quietest layer loses p_max, the loudest p_min; the mean is therefore well below p_max.

    Args:
        mean_activations: one non-negative value per layer.
    """
    logs = [math.log(value + 1e-6) for value in mean_activations]
    low, high = min(logs), max(logs)
    return tuple(
        min_ratio + (high - log) / (high - low + 1e-8) * (max_ratio - min_ratio) for log in logs
    )

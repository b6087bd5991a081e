"""The theoretical compression rate of works on pruning and quantization together (Laborde et al., arXiv:2505.07289)."""

from collections.abc import Mapping

from spq_core.formats.layer import Layout

REFERENCE_BITS = 16


def theoretical_rate(
    sizes: Mapping[str, int], layouts: Mapping[str, Layout], sparsity: float = 0.0
) -> float:
    """1 − bits of codes / 16 bits for each weight of the source, over the matrices of decoder layers.

    With a share s of zeros and q bits it is 1 − (q / 16) (1 − s). It leaves out scales, zero points, padding, and what it costs
    to say where zeros are: equal rates are not equal bytes. Codes stored by their entropy count with the bits they are stored in.

    Args:
        sizes: weights of each matrix of the source, by name.
        layouts: of the matrices that are stored in another form.
        sparsity: share of codes that are zero because the recipe asks for it.
    """
    bits = sum(
        layouts[name].weight_bits * (1 - sparsity) + layouts[name].adapter_bits
        if name in layouts
        else REFERENCE_BITS * size
        for name, size in sizes.items()
    )
    return 1 - bits / (REFERENCE_BITS * sum(sizes.values()))

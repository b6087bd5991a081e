"""Where low-rank adapters (LoRA, arXiv:2106.09685) begin."""

import zlib

import torch
from jaxtyping import Float
from torch import Tensor, nn

DOWN, UP = "adapter_down", "adapter_up"
"""Names of their halves behind that of their matrix."""


def first_values(
    full: str, shape: tuple[int, int], rank: int, seed: int
) -> tuple[Float[Tensor, "rank n_in"], Float[Tensor, "n_out rank"]]:
    """`down` as a linear layer begins, `up` zero, so that nothing changes.

    Args:
        full: the matrix's name, which makes its values its own.
        shape: of the matrix, (n_out, n_in).
    """
    n_out, n_in = shape
    generator = torch.Generator().manual_seed(seed + zlib.crc32(full.encode()))
    bound = n_in**-0.5
    down = torch.empty(rank, n_in).uniform_(-bound, bound, generator=generator)
    return down, torch.zeros(n_out, rank)


def adapter_of(
    parameters: dict[str, nn.Parameter],
    full: str,
    shape: tuple[int, int],
    rank: int,
    seed: int,
    device: torch.device,
) -> tuple[nn.Parameter, nn.Parameter]:
    """A matrix's adapter among the trained tensors; made where it is asked for first."""
    if f"{full}.{UP}" not in parameters:
        down, up = first_values(full, shape, rank, seed)
        parameters[f"{full}.{DOWN}"] = nn.Parameter(down.to(device))
        parameters[f"{full}.{UP}"] = nn.Parameter(up.to(device))
    return parameters[f"{full}.{DOWN}"], parameters[f"{full}.{UP}"]

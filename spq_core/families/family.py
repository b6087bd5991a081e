"""What the stages need to know about an architecture, found from a decoder layer's structure."""

from dataclasses import dataclass

from torch import nn

from spq_core.errors import UnsupportedModelError


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Names of the matrices inside one decoder layer."""

    name: str
    attention: tuple[str, ...]
    """Projections that may become low-rank pairs."""
    mlp_in: tuple[str, ...]
    """Matrices whose output rows are the MLP's neurons."""
    mlp_out: str
    """Matrix whose input columns are the MLP's neurons."""
    scored: str
    """The member of `mlp_in` whose output the SPQ pruning statistic reads, before any activation."""
    shared_inputs: tuple[tuple[str, ...], ...]
    """All matrices in the order data meets them; those of one group receive the same input."""

    def group_of(self, name: str) -> tuple[str, ...]:
        """The group of matrices that receive what `name` receives."""
        return next(group for group in self.shared_inputs if name in group)


LLAMA_LIKE = Family(
    name="llama-like",
    attention=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
    mlp_in=("mlp.gate_proj", "mlp.up_proj"),
    mlp_out="mlp.down_proj",
    scored="mlp.up_proj",
    shared_inputs=(
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        ("self_attn.o_proj",),
        ("mlp.gate_proj", "mlp.up_proj"),
        ("mlp.down_proj",),
    ),
)
OPT = Family(
    name="opt",
    attention=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj"),
    mlp_in=("fc1",),
    mlp_out="fc2",
    scored="fc1",
    shared_inputs=(
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        ("self_attn.out_proj",),
        ("fc1",),
        ("fc2",),
    ),
)
FAMILIES = (LLAMA_LIKE, OPT)


def match_family(layer: nn.Module) -> Family:
    """Return the family whose matrices this decoder layer has, and no others.

    Raises:
        UnsupportedModelError: no family fits; the message lists the linear layers found.
    """
    linears = {name for name, module in layer.named_modules() if isinstance(module, nn.Linear)}
    for family in FAMILIES:
        if linears == {*family.attention, *family.mlp_in, family.mlp_out}:
            return family
    found = ", ".join(sorted(linears)) or "none"
    known = ", ".join(family.name for family in FAMILIES)
    raise UnsupportedModelError(
        f"no known family ({known}) has exactly these linear layers in a decoder layer: {found}"
    )

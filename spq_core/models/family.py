"""What the stages need to know about an architecture. Free of torch."""

from collections.abc import Collection
from dataclasses import dataclass

Group = tuple[str, ...]
"""Names of matrices that receive the same input."""
Step = tuple[Group, ...]
"""Groups of which none changes what another one receives: they may be measured together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Names of the matrices inside a decoder layer; a model with several kinds of layers has all of theirs."""

    name: str
    attention: tuple[str, ...]
    """Projections that may become low-rank pairs."""
    mlp_in: tuple[str, ...]
    """Matrices whose output rows are the MLP's neurons; none where no MLP's neurons may go."""
    mlp_out: str
    """Matrix whose input columns are the MLP's neurons; empty where there is none."""
    scored: str
    """The member of `mlp_in` whose output the SPQ pruning statistic reads, before any activation."""
    steps: tuple[Step, ...]
    """All matrices in the order data meets them."""

    rows_per_neuron: int = 1
    """2 where one matrix holds gate and up projection, all rows of one before those of the other."""
    input_major: bool = False
    """Whether weights are stored as (in, out), as GPT-2's are."""
    head_groups: bool = False
    """Whether `attention` is query, key, value and output projection, and the layer takes the number
    of its heads from their sizes, so that heads can go."""
    others: tuple[str, ...] = ()
    """Matrices in none of `steps`: what receives what is seen when data passes."""
    experts: tuple[str, ...] = ()
    """The modules that hold the experts of a mixture."""

    @property
    def attention_module(self) -> str:
        """The module that holds `attention`; empty where there is none."""
        return self.attention[0].rpartition(".")[0] if self.attention else ""

    @property
    def shared_inputs(self) -> tuple[Group, ...]:
        """All groups, in the order data meets them."""
        return tuple(group for step in self.steps for group in step)

    @property
    def mlp(self) -> tuple[str, ...]:
        """The matrices of the MLP whose neurons may go."""
        return (*self.mlp_in, self.mlp_out) if self.mlp_out else ()

    @property
    def matrices(self) -> frozenset[str]:
        """Every matrix there is."""
        return frozenset((*self.others, *(name for group in self.shared_inputs for name in group)))

    @property
    def behind_attention(self) -> tuple[str, ...]:
        """Those that are known to be behind `attention` and to change nothing for it."""
        return tuple(sorted(self.matrices.difference(self.attention, self.others)))


def _family(
    name: str,
    attention: tuple[str, ...],
    mlp_in: tuple[str, ...],
    mlp_out: str,
    *,
    rows_per_neuron: int = 1,
    input_major: bool = False,
    head_groups: bool = False,
    behind: tuple[str, ...] = (),
) -> Family:
    """A layer of one attention and one MLP.

    Args:
        attention: all projections; the output projection is the last, and the others receive the layer's input.
        behind: those of `attention` that each receive something of their own instead.
        mlp_in: the gate, if there is one, before the projection that is scored.
    """
    return Family(
        name=name, attention=attention, mlp_in=mlp_in, mlp_out=mlp_out, scored=mlp_in[-1],
        steps=(*attention_steps(attention, behind), (mlp_in,), ((mlp_out,),)),
        rows_per_neuron=rows_per_neuron, input_major=input_major, head_groups=head_groups,
    )  # fmt: skip


def steps_in(family: Family, present: Collection[str]) -> tuple[Step, ...]:
    """Those of a family that one layer has."""
    groups = (
        tuple(tuple(name for name in group if name in present) for group in step)
        for step in family.steps
    )
    found = (tuple(group for group in step if group) for step in groups)
    return tuple(step for step in found if step)


def attention_steps(attention: tuple[str, ...], behind: tuple[str, ...] = ()) -> tuple[Step, ...]:
    """Those of an attention whose output projection is the last.

    Args:
        behind: those that each receive something of their own instead of the layer's input.
    """
    first = tuple(one for one in attention[:-1] if one not in behind)
    return ((first,), *(((one,),) for one in behind), (attention[-1:],))


SEPARATE = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
ATTENTION = (*SEPARATE, "self_attn.o_proj")
LATENT = (
    "self_attn.q_a_proj", "self_attn.kv_a_proj_with_mqa", "self_attn.q_b_proj", "self_attn.kv_b_proj",
)  # fmt: skip
NEOX_MLP = (("mlp.dense_h_to_4h",), "mlp.dense_4h_to_h")
GATED_MLP = (("mlp.gate_proj", "mlp.up_proj"), "mlp.down_proj")
FUSED_MLP = (("mlp.gate_up_proj",), "mlp.down_proj")

FAMILIES = (
    _family("llama-like", ATTENTION, *GATED_MLP, head_groups=True),
    _family("opt", (*SEPARATE, "self_attn.out_proj"), ("fc1",), "fc2"),
    _family("phi3", ("self_attn.qkv_proj", "self_attn.o_proj"), *FUSED_MLP, rows_per_neuron=2),
    _family("gpt-neox", ("attention.query_key_value", "attention.dense"), *NEOX_MLP),
    _family("gpt2", ("attn.c_attn", "attn.c_proj"), ("mlp.c_fc",), "mlp.c_proj", input_major=True),
    _family("ungated", ATTENTION, ("mlp.up_proj",), "mlp.down_proj", head_groups=True),
    _family("glm", ATTENTION, *FUSED_MLP, rows_per_neuron=2, head_groups=True),
    _family("starcoder2", ATTENTION, ("mlp.c_fc",), "mlp.c_proj", head_groups=True),
    _family("nanochat", ATTENTION, ("mlp.fc1",), "mlp.fc2", head_groups=True),
    _family("phi", (*SEPARATE, "self_attn.dense"), ("mlp.fc1",), "mlp.fc2", head_groups=True),
    _family("bloom", ("self_attention.query_key_value", "self_attention.dense"), *NEOX_MLP),
    _family("persimmon", ("self_attn.query_key_value", "self_attn.dense"), *NEOX_MLP),
    _family(
        "gptj",
        ("attn.q_proj", "attn.k_proj", "attn.v_proj", "attn.out_proj"),
        ("mlp.fc_in",),
        "mlp.fc_out",
    ),
    _family("codegen", ("attn.qkv_proj", "attn.out_proj"), ("mlp.fc_in",), "mlp.fc_out"),
    _family(
        "gpt-neo",
        (
            "attn.attention.q_proj",
            "attn.attention.k_proj",
            "attn.attention.v_proj",
            "attn.attention.out_proj",
        ),
        ("mlp.c_fc",),
        "mlp.c_proj",
    ),
    _family("latent-attention", (*LATENT, "self_attn.o_proj"), *GATED_MLP, behind=LATENT[2:]),
    _family("mpt", ("attn.Wqkv", "attn.out_proj"), ("ffn.up_proj",), "ffn.down_proj"),
)
"""One line each: names of the matrices, all there are in a layer."""

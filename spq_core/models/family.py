"""What the stages need to know about an architecture. Free of torch."""

from dataclasses import dataclass


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

    rows_per_neuron: int = 1
    """2 where one matrix holds gate and up projection, all rows of one before those of the other."""
    input_major: bool = False
    """Whether weights are stored as (in, out), as GPT-2's are."""
    head_groups: bool = False
    """Whether `attention` is query, key, value and output projection, and the layer takes the number
    of its heads from their sizes, so that heads can go."""

    @property
    def attention_module(self) -> str:
        """The module that holds `attention`."""
        return self.attention[0].rpartition(".")[0]


LLAMA_LIKE = Family(
    name="llama-like",
    head_groups=True,
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
PHI3 = Family(
    name="phi3",
    attention=("self_attn.qkv_proj", "self_attn.o_proj"),
    mlp_in=("mlp.gate_up_proj",),
    mlp_out="mlp.down_proj",
    scored="mlp.gate_up_proj",
    rows_per_neuron=2,
    shared_inputs=(
        ("self_attn.qkv_proj",),
        ("self_attn.o_proj",),
        ("mlp.gate_up_proj",),
        ("mlp.down_proj",),
    ),
)
GPT_NEOX = Family(
    name="gpt-neox",
    attention=("attention.query_key_value", "attention.dense"),
    mlp_in=("mlp.dense_h_to_4h",),
    mlp_out="mlp.dense_4h_to_h",
    scored="mlp.dense_h_to_4h",
    shared_inputs=(
        ("attention.query_key_value",),
        ("attention.dense",),
        ("mlp.dense_h_to_4h",),
        ("mlp.dense_4h_to_h",),
    ),
)
GPT2 = Family(
    name="gpt2",
    input_major=True,
    attention=("attn.c_attn", "attn.c_proj"),
    mlp_in=("mlp.c_fc",),
    mlp_out="mlp.c_proj",
    scored="mlp.c_fc",
    shared_inputs=(("attn.c_attn",), ("attn.c_proj",), ("mlp.c_fc",), ("mlp.c_proj",)),
)
FAMILIES = (LLAMA_LIKE, OPT, PHI3, GPT_NEOX, GPT2)

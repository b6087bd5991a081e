"""The family of layers that no family has line by line, put together from parts that are known by name. Free of torch.

Attention is one of those that dense families have; an MLP is what two or three matrices with known names in one module
make, wherever it is: beside experts (shared by all tokens), or in layers without experts. Neurons of an MLP may go where
nothing stands beside it. What is part of nothing known is quantized, in the order in which data is seen to meet it, and
keeps its shape. Routers, and gates with a few outputs, stay in their own precision.
"""

import re
from collections.abc import Iterable, Mapping, Sequence

from spq_core.models.family import FAMILIES, LATENT, Family, Group, Step, attention_steps

MatrixShapes = Mapping[str, tuple[int, int]]
"""(out, in) by name."""
ATTENTIONS = {family.attention: family for family in FAMILIES}
LATENT_WITHOUT_QUERY = (
    "self_attn.q_proj", "self_attn.kv_a_proj_with_mqa", "self_attn.kv_b_proj", "self_attn.o_proj",
)  # fmt: skip
"""DeepSeek's attention where queries are not compressed."""
MLPS = (
    (("gate_proj", "up_proj"), "down_proj"),
    (("gate_up_proj",), "down_proj"),
    (("up_proj",), "down_proj"),
    (("w1", "w3"), "w2"),
    (("input_linear",), "output_linear"),
)
"""Matrices whose rows are neurons, the gate first, and the one behind them, within one module."""
FEW_OUTPUTS = 8
"""Gates that weigh a whole branch."""
ROUTERS = frozenset({"gate", "router", "shared_expert_gate"})
READ_ELSEWHERE = frozenset({"dt_proj", "weights_proj"})
"""Matrices whose numbers or dtype a layer takes itself, outside of their own product (Mamba, indexers): they stay as they are."""
CHOOSERS = "indexer"
"""The module of matrices that choose which tokens attention sees (DeepSeek sparse attention): no gradient says what an error costs."""
EXPERT = re.compile(r"(.*)\.(\d+)\.(gate_up_proj|up_proj|down_proj)")


def family_of_parts(layers: Sequence[MatrixShapes], experts: Iterable[str]) -> Family:
    """The family of these layers.

    Args:
        layers: matrices of each, with their shapes.
        experts: paths of the modules that hold experts.
    """
    paths = sorted(experts)
    names = {name for layer in layers for name in layer}
    inside = sorted((name for name in names if name.startswith(_within(paths))), key=_by_number)
    attention, behind, head_groups = _attention(layers, names)
    mlps = _mlps(names.difference(inside, attention))
    known = {*inside, *attention, *(name for first, last in mlps for name in (*first, last))}
    sizes = {name: shape for layer in layers for name, shape in layer.items()}
    others = tuple(sorted(name for name in names - known if not _is_gate(name, sizes[name][0])))
    alone = _alone(layers, mlps, _within(paths))
    mlp_in, mlp_out = alone or ((), "")
    ins: Step = tuple((name,) for name in inside if not name.endswith("down_proj"))
    outs: Step = tuple((name,) for name in inside if name.endswith("down_proj"))
    steps = (
        *(attention_steps(attention, behind) if attention else ()),
        *((first,) for first, _ in mlps), *(((last,),) for _, last in mlps), ins, outs,
    )  # fmt: skip
    return Family(
        name="mixture" if paths else "composed",
        attention=attention, mlp_in=mlp_in, mlp_out=mlp_out, scored=mlp_in[-1] if mlp_in else "",
        steps=tuple(step for step in steps if step), others=others,
        rows_per_neuron=2 if mlp_in and mlp_in[0].endswith("gate_up_proj") else 1,
        head_groups=head_groups and not others, experts=tuple(paths),
    )  # fmt: skip


def _within(paths: Iterable[str]) -> tuple[str, ...]:
    return tuple(f"{path}." for path in paths)


def _is_gate(name: str, outputs: int) -> bool:
    *modules, own = name.split(".")
    return outputs <= FEW_OUTPUTS or own in ROUTERS | READ_ELSEWHERE or CHOOSERS in modules


def _attention(
    layers: Sequence[MatrixShapes], names: set[str]
) -> tuple[tuple[str, ...], tuple[str, ...], bool]:
    """Names, those of them that receive something of their own, and whether heads may go.

    They must be the same in every layer that has any of them.
    """
    candidates: list[tuple[tuple[str, ...], tuple[str, ...], bool]]
    if names.issuperset(LATENT_WITHOUT_QUERY) and not names.issuperset(LATENT):
        candidates = [(LATENT_WITHOUT_QUERY, LATENT_WITHOUT_QUERY[2:3], False)]
    else:
        candidates = [
            (attention, LATENT[2:] if set(LATENT) <= set(attention) else (), family.head_groups)
            for attention, family in ATTENTIONS.items()
        ]
    for attention, behind, head_groups in candidates:
        if names.issuperset(attention) and all(
            not layer.keys() & set(attention) or layer.keys() >= set(attention) for layer in layers
        ):
            return attention, behind, head_groups
    return (), (), False


def _mlps(names: set[str]) -> list[tuple[Group, str]]:
    """All there are, by module, in the order of their names."""
    modules = sorted({name.rpartition(".")[0] for name in names})
    found: list[tuple[Group, str]] = []
    for module in modules:
        prefix = f"{module}." if module else ""
        for first, last in MLPS:
            group = tuple(f"{prefix}{name}" for name in first)
            if names.issuperset((*group, f"{prefix}{last}")):
                found.append((group, f"{prefix}{last}"))
                break
    return found


def _alone(
    layers: Sequence[MatrixShapes], mlps: Sequence[tuple[Group, str]], experts: tuple[str, ...]
) -> tuple[Group, str] | None:
    """The MLP with nothing beside it wherever it is, if there is just one such."""
    lasts = [last for _, last in mlps]
    found = [
        (first, last)
        for first, last in mlps
        if all(
            last not in layer
            or (
                not any(name.startswith(experts) for name in layer)
                and sum(other in layer for other in lasts) == 1
                and _within_module(layer, last) <= {*first, last}
            )
            for layer in layers
        )
    ]
    return found[0] if len(found) == 1 else None


def _within_module(layer: MatrixShapes, name: str) -> set[str]:
    """The matrices of the module that holds this one: adapters beside it add to what its neurons give."""
    module = name.rpartition(".")[0]
    return {one for one in layer if one.startswith(f"{module}.")} if module else {name}


def _by_number(name: str) -> tuple[str, int, str]:
    found = EXPERT.fullmatch(name)
    return (found[1], int(found[2]), found[3]) if found else (name, -1, "")

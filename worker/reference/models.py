"""The page of models: types that are accepted, and kinds of layers."""

from collections.abc import Iterator, Sequence

from spq_core.models.architectures import SUPPORTED_MODEL_TYPES, WRAPPER_TYPES
from spq_core.models.family import FAMILIES

A_LINE = 8


def page() -> Iterator[str]:
    """Its lines."""
    yield "# Models"
    yield ""
    yield (
        "`model_type` of a config.json must be one of these; anything else is refused before weights are fetched. `make models` compresses a toy of each by `int8`, `balanced`, `gptq-4` and `spq`, loads it in a fresh process, and compares it "
        "with the source's own class holding the weights that the artifact's layers say they have. Figures of a real model are those of SmolLM2-135M."
    )
    yield ""
    yield from _listed(SUPPORTED_MODEL_TYPES)
    yield ""
    yield "## Models of several towers"
    yield ""
    yield (
        "Of these the part that writes text is compressed; towers for images and what joins them are carried along bit by bit, with the processor's files. Artifacts load as the "
        "source's class, figures are those of text."
    )
    yield ""
    yield from _listed(WRAPPER_TYPES)
    yield ""
    yield "## Mixtures of experts, and layers of several kinds"
    yield ""
    yield (
        "Experts are compressed one by one, whether files hold them one by one or fused, and compute one by one: none is widened that no token asks for. Routers and gates with few outputs "
        "keep their dtype. What receives what is known by name, or seen when a sample passes (state space layers, convolutions, gated attention, inputs of each layer). "
        "Low rank is for attention whose matrices have one of the names below; neurons go where an MLP stands alone; experts go whole (`prune-experts`). What stays whole says why in the report. "
        "The profiles for vLLM do not hold experts."
    )
    yield ""
    yield "## Kinds of layers"
    yield ""
    yield "A decoder layer has exactly these matrices, or attention and MLPs among others. Heads can be pruned where the layer takes their number from its matrices."
    yield ""
    yield "| kind | attention | MLP | `prune-heads` |"
    yield "|---|---|---|---|"
    for family in FAMILIES:
        attention = ", ".join(f"`{name.rpartition('.')[2]}`" for name in family.attention)
        mlp = ", ".join(f"`{name.rpartition('.')[2]}`" for name in family.mlp)
        yield f"| {family.name} | {attention} | {mlp} | {'yes' if family.head_groups else 'no'} |"


def _listed(names: Sequence[str]) -> Iterator[str]:
    """In order, some a line."""
    types = sorted(names)
    for at in range(0, len(types), A_LINE):
        ending = "," if at + A_LINE < len(types) else "."
        yield ", ".join(f"`{one}`" for one in types[at : at + A_LINE]) + ending

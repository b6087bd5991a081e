"""The page of models: types that are accepted, what was tried of them, and kinds of layers."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from spq_core.models.architectures import ALL_MODEL_TYPES, SUPPORTED_MODEL_TYPES, WRAPPER_TYPES
from spq_core.models.family import FAMILIES
from spq_core.models.refused_types import why_refused

COVERAGE = Path(__file__).parents[2] / "docs" / "reference" / "coverage.json"
RECIPES = ("int8", "balanced", "gptq-4", "spq", "portable-4")
PARTS = ("low rank", "neurons", "heads", "experts")
BEFORE = """# Models

`model_type` of a config.json must be one of the {counts} below; anything else is refused before weights are fetched. Of each type a toy was compressed with transformers {version}, loaded in a
fresh process, and compared with the source's own class holding the weights that the artifact's layers say they have (`make models`). Figures are nats per token between toy and artifact: they show
that a type works, not how good a recipe is, since toys are random. Figures of a real model are those of SmolLM2-135M ([figures](../figures.md)).

The columns on the right say what else than quantization is possible: low-rank attention, fewer neurons of MLPs, fewer heads, fewer experts. What stays whole says why in the report.

## Decoders
"""
TOWERS = """
## Models of several towers

Of these the part that writes text is compressed; towers for images and what joins them are carried along bit by bit, with the processor's files. Artifacts load as the
source's class, figures are those of text.
"""
LAYERS = """
## Mixtures of experts, and layers of several kinds

Experts are compressed one by one, whether files hold them one by one or fused, and compute one by one: none is widened that no token asks for. Routers, gates with few outputs, and matrices that
choose tokens or whose numbers a layer reads itself keep their dtype. What receives what is known by name, or seen when a sample passes (state space layers, convolutions, gated attention, inputs of
each layer). Low rank is for attention whose matrices have one of the names below; neurons go where an MLP stands alone; experts go whole (`prune-experts`). The profiles for vLLM do not hold experts.

## Types that are refused

| type | why |
|---|---|
"""
KINDS = """
## Kinds of layers

A decoder layer has exactly these matrices, or attention and MLPs among others. Heads can be pruned where the layer takes their number from its matrices.

| kind | attention | MLP | `prune-heads` |
|---|---|---|---|
"""


def page() -> Iterator[str]:
    """Its lines."""
    document = json.loads(COVERAGE.read_text(encoding="utf-8"))
    rows, version = document["types"], document["versions"]["transformers"]
    counts = (
        f"{len(SUPPORTED_MODEL_TYPES)} decoders or {len(WRAPPER_TYPES)} models of several towers"
    )
    yield from BEFORE.format(counts=counts, version=version).splitlines()
    yield from _table(SUPPORTED_MODEL_TYPES, rows)
    yield from TOWERS.splitlines()
    yield from _table(WRAPPER_TYPES, rows)
    yield from LAYERS.splitlines()
    for name, row in sorted(rows.items()):
        if name not in ALL_MODEL_TYPES:
            yield f"| `{name}` | {why_refused(name) or _reason(row)} |"
    yield from KINDS.splitlines()
    for family in FAMILIES:
        attention = ", ".join(f"`{name.rpartition('.')[2]}`" for name in family.attention)
        mlp = ", ".join(f"`{name.rpartition('.')[2]}`" for name in family.mlp)
        yield f"| {family.name} | {attention} | {mlp} | {'yes' if family.head_groups else 'no'} |"


def _table(names: tuple[str, ...], rows: Mapping[str, Any]) -> Iterator[str]:
    yield ""
    yield f"| type | {' | '.join(RECIPES)} | {' | '.join(PARTS)} |"
    yield "|---" * (1 + len(RECIPES) + len(PARTS)) + "|"
    for name in sorted(names):
        row = rows.get(name, {})
        figures = [_figure(row.get("recipes", {}).get(recipe)) for recipe in RECIPES]
        parts = ["yes" if row.get("parts", {}).get(part) else "–" for part in PARTS]
        yield f"| `{name}` | {' | '.join((*figures, *parts))} |"


def _figure(found: Mapping[str, Any] | None) -> str:
    if not found:
        return "not tried"
    return f"{found['kl']:.1e}" if "kl" in found else "–"


def _reason(row: Mapping[str, Any]) -> str:
    """What came of the try, without the name of the error."""
    of_recipes = (one.get("reason") for one in row.get("recipes", {}).values())
    said = row.get("reason") or next(filter(None, of_recipes), "nobody has looked at it yet")
    words = str(said).partition(": ")[2] or str(said)
    return words.replace("|", "/").replace("\n", " ")

"""The matrices of a model, from the headers of its weight files and its config.json. Free of torch."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from spq_core.errors import UnsupportedModelError
from spq_core.models.architectures import check_config, text_part
from spq_core.models.composed import family_of_parts
from spq_core.models.family import FAMILIES, Family
from spq_core.models.weight_files import ITEM_BYTES, WeightHeader, sixteen_bit_bytes

LAYER = re.compile(r"(?:.*\.)?(?:layers|h|blocks)\.(\d+)\.(.+)")
WEIGHT = ".weight"
EMBEDDINGS = (
    "embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight", "tok_embeddings.weight", "embeddings.weight",
)  # fmt: skip
HEADS = ("lm_head.weight", "embed_out.weight")
NOT_STORED = (
    "attn.bias",
    "attn.masked_bias",
    "attention.bias",
    "attention.masked_bias",
    "inv_freq",
)
"""Endings of masks and tables that some checkpoints hold, and artifacts do not."""
EXPERT = re.compile(r"(.*experts)\.\d+\.")
MATRIX_AXES = 2
SIXTEEN_BITS = 2
LAYER_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")


@dataclass(frozen=True, slots=True)
class Matrix:
    """Rows and columns as a linear layer has them."""

    n_out: int
    n_in: int

    @property
    def elements(self) -> int:
        """Number of weights."""
        return self.n_out * self.n_in


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShapes:
    """What can be known of a model without its weights."""

    family: Family
    layers: tuple[Mapping[str, Matrix], ...]
    """Matrices of each decoder layer by their names in it."""
    embedding: Matrix
    head: Matrix | None
    """None where the head is the embedding."""
    item_bytes: int
    """Of a weight."""
    other_bytes: int
    """Norms, biases, positions: what no stage quantizes."""
    source_bytes: int
    """Of the weight files."""
    reference_bytes: float
    """Of the weight files with 16 bits a weight at most: what ratios are against."""
    carried_bytes: int = 0
    """Of `other_bytes`, what belongs to towers for other inputs than text."""
    kv_heads: int
    """Key-value heads of a layer."""
    text_config: Mapping[str, Any] = field(default_factory=dict)
    """What config.json says of the part that reads and writes text."""
    has_towers: bool = False
    """Whether there are parts for other inputs."""

    def in_sixteen_bits(self) -> "ModelShapes":
        """The same model, with its floating-point weights in 16 bits at most."""
        if self.item_bytes <= SIXTEEN_BITS:
            return self
        others = self.other_bytes * SIXTEEN_BITS // self.item_bytes
        return replace(self, item_bytes=SIXTEEN_BITS, other_bytes=others)

    @property
    def layer_elements(self) -> int:
        """Weights of all decoder layers."""
        return sum(matrix.elements for layer in self.layers for matrix in layer.values())

    @property
    def elements(self) -> int:
        """Weights of all matrices; a tied head counts once."""
        head = 0 if self.head is None else self.head.elements
        return self.layer_elements + self.embedding.elements + head

    @property
    def widest_input(self) -> int:
        """Inputs of the widest matrix in a decoder layer."""
        return max(part.n_in for layer in self.layers for part in layer.values())

    @property
    def largest_layer(self) -> Mapping[str, Matrix]:
        """The decoder layer with the most weights."""
        return max(self.layers, key=lambda layer: sum(part.elements for part in layer.values()))

    @property
    def hidden(self) -> int:
        """Width of the hidden states."""
        return self.embedding.n_in


def read_shapes(
    config: Mapping[str, Any], tensors: Mapping[str, WeightHeader], source_bytes: int
) -> ModelShapes:
    """Sort a checkpoint's tensors.

    Args:
        tensors: of all weight files, by name.

    Raises:
        UnsafeModelError, UnsupportedModelError: the model could not be compressed.
    """
    check_config(config)
    text = text_part(config)
    towers = "" if text is config else _text_tower(text, tensors)
    text_prefix = towers.rstrip(".").rpartition(".")[0]
    by_layer: dict[int, dict[str, WeightHeader]] = {}
    rest: dict[str, WeightHeader] = {}
    for name, tensor in tensors.items():
        found = LAYER.fullmatch(name)
        if name.endswith(NOT_STORED):
            continue
        if found and (not towers or name.startswith(towers)):
            by_layer.setdefault(int(found[1]), {})[found[2]] = tensor
        else:
            rest[name] = tensor
    _check_layers(text, by_layer)
    family = _family_of(by_layer)
    embedding = _named(rest, EMBEDDINGS)
    if embedding is None:
        raise UnsupportedModelError(
            f"no tensor is named like an embedding: {', '.join(EMBEDDINGS)}"
        )
    is_tied = config.get("tie_word_embeddings", text.get("tie_word_embeddings"))
    head = None if is_tied else _named(rest, HEADS)
    if head is None and is_tied is False:
        raise UnsupportedModelError("the head is not tied, and no tensor is named like one")
    layers = tuple(_matrices_of(layer, family) for _, layer in sorted(by_layer.items()))
    in_matrices = {
        id(tensor)
        for layer, found in zip((by_layer[i] for i in sorted(by_layer)), layers, strict=True)
        for name, tensor in layer.items()
        if any(part in found for part in _parts_of(name, tensor))
    }
    tables = {id(one) for one in (embedding, _named(rest, HEADS)) if one is not None}
    others = [*rest.values(), *(one for layer in by_layer.values() for one in layer.values())]
    return ModelShapes(
        family=family,
        layers=layers,
        embedding=Matrix(*embedding.shape),
        head=None if head is None else Matrix(*head.shape),
        item_bytes=ITEM_BYTES[embedding.dtype],
        other_bytes=sum(one.n_bytes for one in others if id(one) not in in_matrices | tables),
        source_bytes=source_bytes,
        reference_bytes=sixteen_bit_bytes(tensors.values(), source_bytes),
        carried_bytes=sum(
            one.n_bytes
            for name, one in rest.items()
            if towers and not name.startswith(text_prefix) and id(one) not in tables
        ),
        kv_heads=_kv_heads(text),
        text_config=text,
        has_towers=text is not config,
    )


def _text_tower(text: Mapping[str, Any], tensors: Iterable[str]) -> str:
    """What names of the text tower's layers begin with: of the lists with the right number, the one named like it."""
    lists: dict[str, set[int]] = {}
    for name in tensors:
        found = LAYER.fullmatch(name)
        if found:
            lists.setdefault(name[: found.start(1)], set()).add(int(found[1]))
    count = next((text[key] for key in LAYER_COUNTS if key in text), None)
    fitting = [one for one, layers in lists.items() if len(layers) == count] or list(lists)
    named = [one for one in fitting if "language" in one or "text" in one]
    others = [one for one in fitting if "vis" not in one]
    return (named or others or fitting or [""])[0]


def _check_layers(config: Mapping[str, Any], layers: Mapping[int, Any]) -> None:
    named = next((config[key] for key in LAYER_COUNTS if key in config), len(layers))
    if sorted(layers) != list(range(len(layers))) or named != len(layers):
        raise UnsupportedModelError(
            f"config.json names {named} decoder layers, the weight files hold {len(layers)}"
        )


def _family_of(layers: Mapping[int, Mapping[str, WeightHeader]]) -> Family:
    found = [
        {
            part: shape
            for name, tensor in layer.items()
            for part, shape in _parts_of(name, tensor).items()
        }
        for layer in layers.values()
    ]
    union = {name for layer in found for name in layer}
    for family in FAMILIES:
        if union == family.matrices:
            _require_all(found, family)
            return family
    if not any(found):
        raise UnsupportedModelError("no tensor is a matrix of a decoder layer")
    experts = {one[1] for layer in found for name in layer if (one := EXPERT.match(name))}
    return family_of_parts(found, experts)


def _require_all(layers: Iterable[Mapping[str, Any]], family: Family) -> None:
    """Layers of one kind have the same matrices.

    Raises:
        UnsupportedModelError: one lacks some.
    """
    for index, layer in enumerate(layers):
        if missing := sorted(family.matrices - layer.keys()):
            raise UnsupportedModelError(
                f"decoder layer {index} lacks {', '.join(missing[:3])}, which other layers have; the weight files are "
                "incomplete: fetch them again"
            )


def _parts_of(name: str, tensor: WeightHeader) -> dict[str, tuple[int, int]]:
    """The matrices of a tensor: itself, or each expert's."""
    if not tensor.n_elements:
        return {}
    if len(tensor.shape) == MATRIX_AXES and name.endswith(WEIGHT):
        n_out, n_in = tensor.shape
        return {name.removesuffix(WEIGHT): (n_out, n_in)}
    if len(tensor.shape) == MATRIX_AXES + 1 and "experts" in name:
        count, n_out, n_in = tensor.shape
        path, _, matrix = name.removesuffix(WEIGHT).rpartition(".")
        return {f"{path}.{number}.{matrix}": (n_out, n_in) for number in range(count)}
    return {}


def _matrices_of(layer: Mapping[str, WeightHeader], family: Family) -> dict[str, Matrix]:
    """Those that are quantized, in the orientation of a linear layer."""
    return {
        part: Matrix(*(reversed(shape) if family.input_major else shape))
        for name, tensor in layer.items()
        for part, shape in _parts_of(name, tensor).items()
        if part in family.matrices
    }


def _named(tensors: Mapping[str, WeightHeader], endings: tuple[str, ...]) -> WeightHeader | None:
    return next(
        (one for name, one in tensors.items() if name.endswith(endings) and _is_matrix(one)),
        None,
    )


def _is_matrix(tensor: WeightHeader) -> bool:
    return len(tensor.shape) == MATRIX_AXES and tensor.n_elements > 0


def _kv_heads(config: Mapping[str, Any]) -> int:
    for key in ("num_key_value_heads", "num_attention_heads", "n_head"):
        value = config.get(key)
        if isinstance(value, int) and value > 0:
            return value
    return 1

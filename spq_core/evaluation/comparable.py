"""What must hold of model folders before they are measured side by side."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from spq_core.artifact.gguf_file import gguf_file
from spq_core.errors import EvaluationError
from spq_core.models.architectures import ALL_MODEL_TYPES, check_architectures
from spq_core.models.blocks import open_model
from spq_core.models.fit import check_fit
from spq_core.models.model_folder import read_json_object, side_files
from spq_core.models.tokenizer import load_tokenizer

COMPARED_CHARACTERS = 20_000
"""Of each text: two tokenizers that give the same tokens for these are taken for the same."""


def require_whole(folder: Path) -> None:
    """Refuse a folder whose weights are not all of a causal language model, from headers alone.

    Only plain models can be judged so: quantized ones are judged by what their library loads, and GGUF files when they are read.

    Raises:
        UnsupportedModelError, WeightsMismatchError, ArtifactError: saying what is missing.
    """
    config = read_json_object(folder / "config.json")
    check_architectures(config)
    quantized = config.get("quantization_config") or config.get("compression_config")
    if gguf_file(folder) is not None:
        return
    if not quantized and config.get("model_type") in ALL_MODEL_TYPES:
        check_fit(*open_model(folder), folder.name)


def common_tokenizer(folders: Mapping[str, Path], texts: Iterable[str]) -> PreTrainedTokenizerBase:
    """The first folder's tokenizer, which all others agree with on these texts.

    Args:
        folders: name → folder; others than the first may have no tokenizer.

    Raises:
        EvaluationError: one gives other tokens, so the models cannot be scored on the same ones.
        TokenizerError: a tokenizer cannot be built.
    """
    (first, folder), *others = folders.items()
    tokenizer = load_tokenizer(folder)
    starts = [text[:COMPARED_CHARACTERS] for text in texts]
    wanted = [list(tokenizer(start, verbose=False)["input_ids"]) for start in starts]
    for name, other in others:
        if not side_files(other):
            continue
        found = load_tokenizer(other)
        for start, ids in zip(starts, wanted, strict=True):
            theirs = list(found(start, verbose=False)["input_ids"])
            if theirs != ids:
                raise EvaluationError(
                    f"{name} and {first} cut the same text into different tokens: "
                    f"{_difference(tokenizer, ids, found, theirs)}. Models are compared on one sequence of "
                    "tokens; measure this one alone"
                )
    return tokenizer


def _difference(
    one: PreTrainedTokenizerBase, ids: list[int], other: PreTrainedTokenizerBase, theirs: list[int]
) -> str:
    """The first place where two token sequences part."""
    place = next(
        (at for at, pair in enumerate(zip(ids, theirs, strict=False)) if pair[0] != pair[1]),
        min(len(ids), len(theirs)),
    )
    shown = [
        f"{[str(token) for token in tokenizer.convert_ids_to_tokens(found[place : place + 3])]}"
        for tokenizer, found in ((other, theirs), (one, ids))
    ]
    return f"at token {place} {shown[0]} instead of {shown[1]}"

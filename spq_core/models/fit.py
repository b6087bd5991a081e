"""Weight files against the model that config.json describes, from headers alone.

transformers fills what it does not find with random numbers and drops what it has no place for, with a
warning each. Neither is what somebody wants who compresses or measures a model.
"""

import re
from collections.abc import Collection, Iterable

from spq_core.errors import UnsafeModelError, WeightsMismatchError
from spq_core.models.checkpoint import DTYPES, FORMER_NAMES, Checkpoint
from spq_core.models.skeleton import Skeleton
from spq_core.models.weight_files import INDEX_FILE, SINGLE_FILE

CONSTANT = re.compile(
    r"(.*\.)?((attn|attention|self_attn)\.(masked_)?bias|rotary_emb\.(inv_freq|cos_cached|sin_cached)|inv_freq)"
)
"""Masks and tables that files of several types carry along; models compute them."""
ADAPTER = re.compile(r"lora_|\.adapter|\.ia3_|\.hada_|\.lokr_|\.prefix_encoder")
WRAPPED = re.compile(r"(base_model\.model\.|module\.|_orig_mod\.|_fsdp_wrapped_module\.|student\.)")
SHOWN = 3


def check_fit(skeleton: Skeleton, checkpoint: Checkpoint, name: str) -> tuple[str, ...]:
    """Compare every tensor's name and shape; return notes on tensors that are left out.

    Args:
        name: of the model, for messages.

    Raises:
        WeightsMismatchError: a tensor is missing, has another shape than config.json asks for, or has no
            place in the model.
        UnsafeModelError: a tensor that the model needs holds integers.
    """
    wanted = {key: tuple(part.shape) for key, part in skeleton.model.state_dict().items()}
    if skeleton.tied:
        wanted.pop(f"{skeleton.head_path}.weight", None)
    places = {key: checkpoint.stored_names(key) for key in wanted}
    missing = [key for key, stored in places.items() if not stored]
    used = {one for stored in places.values() for one in stored}
    unread = sorted(set(checkpoint.tensors) - used)
    if missing:
        stale = ""
        if (checkpoint.folder / INDEX_FILE).is_file() and {
            one.file for one in checkpoint.tensors.values()
        } == {SINGLE_FILE}:
            stale = (
                f"; {SINGLE_FILE} is read although there is {INDEX_FILE}, as transformers does: remove the "
                "one that is left over"
            )
        raise WeightsMismatchError(_missing(name, missing, unread, skeleton) + stale)
    shapes = checkpoint.shapes(wanted)
    for key, shape in wanted.items():
        if shapes[key] != shape:
            raise WeightsMismatchError(
                f"{name}: {key!r} has shape {list(shapes[key])}, config.json asks for {list(shape)}"
                f"{_hint(key, skeleton)}; the weights and config.json belong to different models"
            )
        for stored in places[key]:
            if (dtype := checkpoint.tensors[stored].dtype) not in DTYPES:
                raise UnsafeModelError(
                    "already_quantized",
                    f"tensor {stored!r} is stored as {dtype}; only float weights are compressed",
                )
    return _judge_unread(name, unread, skeleton, checkpoint)


def _missing(name: str, missing: list[str], unread: list[str], skeleton: Skeleton) -> str:
    message = f"{name}: the weight files lack {_some(missing)}, which config.json asks for"
    wrapped = next((found[0] for key in unread if (found := WRAPPED.match(key))), None)
    if wrapped:
        return (
            f"{message}; their names begin with {wrapped!r}, as a training wrapper saved them: save the inner "
            "model again (of PEFT: merge_and_unload first)"
        )
    if missing == [f"{skeleton.head_path}.weight"]:
        return (
            f"{message}; without a head it predicts nothing. If the head is the embedding, set "
            "tie_word_embeddings: true in config.json; else name the causal language model itself"
        )
    layers = {_layer_of(key, skeleton) for key in missing}
    if None not in layers and len(layers) < skeleton.n_layers:
        return f"{message}; {_layers_hint(skeleton)}"
    return f"{message}; fetch the model again, or ask its owner to complete it"


def _layer_of(key: str, skeleton: Skeleton) -> int | None:
    """The decoder layer that a tensor's name says it belongs to."""
    found = re.search(rf"(^|\.){skeleton.layers_path.rpartition('.')[2]}\.(\d+)\.", key)
    return None if found is None else int(found[2])


def _layers_hint(skeleton: Skeleton) -> str:
    return (
        f"config.json says that there are {skeleton.n_layers} layers (num_hidden_layers): correct it if the "
        "weights are right, or fetch the weights again"
    )


def _hint(key: str, skeleton: Skeleton) -> str:
    tables = {f"{skeleton.embedding_path}.weight", f"{skeleton.head_path}.weight"}
    return f" (vocab_size {skeleton.text_config.vocab_size})" if key in tables else ""


def _judge_unread(
    name: str, unread: Iterable[str], skeleton: Skeleton, checkpoint: Checkpoint
) -> tuple[str, ...]:
    """Let constants, a tied head and integers go, with a note; refuse what would be lost."""
    passed_over = [
        re.compile(one)
        for one in skeleton.model._keys_to_ignore_on_load_unexpected or ()  # noqa: SLF001
    ]
    head = f"{skeleton.head_path}.weight"
    copies = {head, FORMER_NAMES.get(head, head)} if skeleton.tied else set()
    notes, lost = [], []
    for key in unread:
        header = checkpoint.tensors[key]
        learned = (
            key.endswith("bias") and len(header.shape) == 1
        )  # a mask has more axes, or one number
        if key in copies or (CONSTANT.fullmatch(key) and not (learned and header.n_elements > 1)):
            continue
        ignored = any(one.search(key) for one in passed_over)
        if checkpoint.tensors[key].dtype in DTYPES and not ignored:
            lost.append(key)
        else:
            notes.append(key)
    if lost:
        raise WeightsMismatchError(_lost(name, lost, skeleton))
    return (f"{_some(notes)} left out: no part of the model reads it",) if notes else ()


def _lost(name: str, lost: list[str], skeleton: Skeleton) -> str:
    message = f"{name}: the model has no place for {_some(lost)}, so it would be lost"
    if any(ADAPTER.search(key) for key in lost):
        return f"{message}; an adapter is not merged: merge it (merge_and_unload) and save the model again"
    layers = [_layer_of(key, skeleton) for key in lost]
    if all(layer is not None and layer >= skeleton.n_layers for layer in layers):
        return f"{message}; {_layers_hint(skeleton)}"
    return f"{message}; name a model that is only a causal language model, or save it again without"


def _some(names: Collection[str]) -> str:
    shown = ", ".join(repr(key) for key in list(names)[:SHOWN])
    return f"{shown} and {len(names) - SHOWN} more" if len(names) > SHOWN else shown

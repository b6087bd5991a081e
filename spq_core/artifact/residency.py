"""Load an artifact with as much of it coded in memory as a limit asks for."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from spq_core.artifact.read import load_artifact
from spq_core.errors import ArtifactError
from spq_core.formats.decoding_ahead import StaysCoded
from spq_core.formats.residency import Held, Speeds, fraction_within_bytes, spread_over
from spq_core.memory import return_freed_memory

TRIALS = 3


def load_within(
    folder: Path,
    *,
    resident_bytes: int | None = None,
    max_slowdown: float | None = None,
    rows: int = 1,
    dtype: torch.dtype | None = None,
) -> PreTrainedModel:
    """Load an artifact whose codes are stored by entropy, and keep as much of it coded as a limit asks for or allows.

    Args:
        resident_bytes: most bytes of weights in memory, those decoded for the moment included; as little as that takes stays coded.
        max_slowdown: how many times as long a pass may take as with everything decoded, as measured here; as much as that allows stays coded.
        rows: tokens of that pass: 1 for decoding one sequence, more for prompts or batches.

    Raises:
        ArtifactError: nothing of it is stored by entropy.
        ValueError: neither or both limits are given, or they cannot be kept.
    """
    if (resident_bytes is None) == (max_slowdown is None):
        raise ValueError("give either resident_bytes or max_slowdown")
    model = load_artifact(folder, dtype, coded=1.0)
    if not coded_layers(model):
        raise ArtifactError(
            f"{folder.name} has nothing to keep coded: its weights are not stored by entropy as this version writes them; "
            "recipes small and smallest do that"
        )
    if resident_bytes is not None:
        fraction = _fraction_within(model, resident_bytes)
    else:
        fraction = measured_speeds(model, rows).fraction_within(max_slowdown or 1.0)
    expand(model, fraction)
    return model


def coded_layers(model: nn.Module) -> dict[str, StaysCoded]:
    """Layers that are coded in memory, by name, in the model's order."""
    return {name: one for name, one in model.named_modules() if isinstance(one, StaysCoded)}


def expand(model: nn.Module, fraction: float) -> None:
    """Decode, for good, all that is coded in memory but a share of its bytes."""
    sizes = {name: one.coded_bytes for name, one in coded_layers(model).items()}
    stay = spread_over(sizes, fraction)
    for name in sizes:
        layer = model.get_submodule(name)
        if name not in stay and isinstance(layer, StaysCoded):
            layer.decoder.forget()  # it would hold what is replaced
            model.set_submodule(name, layer.expanded())
    return_freed_memory()


@torch.no_grad()
def measured_speeds(model: PreTrainedModel, rows: int) -> Speeds:
    """Of a model loaded with `coded=1`: computing a pass of so many tokens, and decoding all that is coded, each by itself."""
    layers = list(coded_layers(model).values())
    decoder = layers[0].decoder
    ids = torch.zeros(1, rows, dtype=torch.int64, device=model.device)
    with decoder.rehearsal():
        model(ids, use_cache=False, logits_to_keep=1)  # compiles, and decodes one of each shape
        computing = _median(lambda: model(ids, use_cache=False, logits_to_keep=1))
    return Speeds(computing, _median(lambda: decoder.decode_all(layers)))


def _median(run: Callable[[], object]) -> float:
    seconds = []
    for _ in range(TRIALS):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def _fraction_within(model: nn.Module, resident_bytes: int) -> float:
    layers = coded_layers(model)
    held = {
        name: Held(one.coded_bytes, one.out_features * one.in_features)
        for name, one in layers.items()
    }
    tensors = {id(one): one.nbytes for one in (*model.parameters(), *model.buffers())}
    others = sum(tensors.values()) - sum(one.coded for one in held.values())
    ahead = next(iter(layers.values())).decoder.ahead
    room = (ahead + 1) * max(one.decoded for one in held.values())
    return fraction_within_bytes(resident_bytes, held, others, room)

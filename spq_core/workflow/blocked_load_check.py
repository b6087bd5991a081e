"""Program: what `artifact.load_check` does, for an artifact that is larger than memory: a decoder layer at a time.

    python -m spq_core.workflow.blocked_load_check FOLDER PROBE THREADS [SOURCE]

It answers alike. What it cannot do is generate, which needs the whole model.
"""

from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from spq_core.artifact.blocked import open_blocked
from spq_core.artifact.load_check import DECODED, SHOWN, answer, difference, rounding_inputs
from spq_core.artifact.same_text import differences
from spq_core.errors import ArtifactError
from spq_core.evaluation.float_head import widen_head
from spq_core.memory import return_freed_memory
from spq_core.models.blocked import BlockedModel
from spq_core.streaming.stream import CalibrationStream, begin_stream, widen_small_parts


def compare(folder: Path, probe_file: Path, source: Path | None = None) -> dict[str, Any]:
    """Send the probe through the layers, and compare what reads text with the source's."""
    model = open_blocked(folder)
    if model is None:
        raise ArtifactError(
            f"{folder.name} is larger than memory, and only its library's own loader reads it"
        )
    with safe_open(probe_file, "pt") as handle:
        probe = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 - not a dict
    whole, few, rounded = (_entering(model, probe, count) for count in (None, DECODED, None))
    for index in range(model.skeleton.n_layers):
        layer = model.layer(index)
        for stream in (whole, few, rounded):
            with rounding_inputs(layer) if stream is rounded else nullcontext():
                stream.advance(index, layer)
        del layer
        return_freed_memory()
    rest = model.rest()
    embedded = rest.get_submodule(model.skeleton.embedding_path)(probe["ids"])
    widen_small_parts(rest, model.skeleton)
    widen_head(rest)
    wanted = probe["logits"]
    text = [] if source is None else list(islice(differences(folder, source), SHOWN))
    return {
        "embedding": difference(embedded, probe["embedded"]),
        "logits": difference(_logits(model, rest, whole), wanted),
        "decoding": difference(_logits(model, rest, few), wanted[:DECODED]),
        "rounding": difference(_logits(model, rest, rounded)[:DECODED], wanted[:DECODED]),
        "text": text,
    }


def _entering(
    model: BlockedModel, probe: dict[str, Tensor], count: int | None
) -> CalibrationStream:
    """The first tokens in front of the first layer."""
    stream = begin_stream(model.skeleton, model.rest(), probe["ids"][:, :count])
    stream.hidden[0] = probe["entered"][:, :count].clone()
    return stream


def _logits(model: BlockedModel, rest: Any, stream: CalibrationStream) -> Tensor:
    return stream.through_rest(model.skeleton, rest, [0])[0].float()


def main() -> None:
    """The program."""
    answer(compare)


if __name__ == "__main__":
    main()

"""Program: load an artifact as anyone would, compare it with a probe, and generate.

    python -m spq_core.artifact.load_check FOLDER PROBE THREADS [SOURCE]

A process of its own with nothing but the public loader. It prints one JSON object: the relative
differences of a `LoadCheck`, and under `text` what differs from the source in reading and ending text; or
`error`.
"""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers.utils import logging

import spq_core  # noqa: F401 - teaches transformers the format
from spq_core.artifact.same_text import differences
from spq_core.errors import TokenizerError
from spq_core.machine import machine_failure
from spq_core.models.auto_class import auto_class_of
from spq_core.models.tokenizer import load_tokenizer

SHOWN = 3
GENERATED = 4
DECODED = 4


def compare(folder: Path, probe_file: Path, source: Path | None = None) -> dict[str, Any]:
    """Load, run the probe, generate, and compare what reads text with the source's."""
    with safe_open(probe_file, "pt") as handle:
        probe = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 - not a dict
        first_layer = handle.metadata()["first_layer"]
    model = (
        auto_class_of(folder)
        .from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, trust_remote_code=False
        )
        .eval()
    )
    embedded = model.get_input_embeddings()(probe["ids"])
    found: dict[str, Any] = {
        "embedding": difference(embedded, probe["embedded"]),
        "logits": difference(entering(model, first_layer, probe, None), probe["logits"]),
        "decoding": difference(
            entering(model, first_layer, probe, DECODED), probe["logits"][:DECODED]
        ),
    }
    with rounding_inputs(model):
        rounded = entering(model, first_layer, probe, None)
    found["rounding"] = difference(rounded[:DECODED], probe["logits"][:DECODED])
    generate(model, folder, probe["ids"][:, :DECODED])
    text = [] if source is None else list(islice(differences(folder, source), SHOWN))
    return found | {"text": text}


def entering(model: Any, first_layer: str, probe: dict[str, Tensor], count: int | None) -> Tensor:
    """Logits of the first tokens, given what the first layer receives."""

    def replace(_module: object, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        return (probe["entered"][:, :count], *arguments[1:])

    handle = model.get_submodule(first_layer).register_forward_pre_hook(replace)
    try:
        logits: Tensor = model(probe["ids"][:, :count], use_cache=False).logits[0]
    finally:
        handle.remove()
    return logits


@contextmanager
def rounding_inputs(model: nn.Module) -> Iterator[None]:
    """Round what each matrix receives to bfloat16, as kernels for few tokens do.

    With many tokens those kernels are not used: what changes then is what rounding does to this model.
    """

    def rounded(_module: object, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        states: Tensor = arguments[0]
        return (states.to(torch.bfloat16).to(states.dtype), *arguments[1:])

    matrices = [one for one in model.modules() if hasattr(one, "in_features")]
    with ExitStack() as stack:
        for matrix in matrices:
            stack.callback(matrix.register_forward_pre_hook(rounded).remove)
        yield


def difference(found: Tensor, wanted: Tensor) -> float:
    """Norm of the difference over the norm of what was wanted."""
    return float((found.float() - wanted).norm() / wanted.norm().clamp(min=1e-30))


def generate(model: Any, folder: Path, ids: Tensor) -> None:
    """Generate some tokens, and turn them into text if the folder has a tokenizer."""
    made = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=GENERATED, do_sample=False
    )
    if made.shape[1] <= ids.shape[1]:
        raise RuntimeError("generate made no token")
    with suppress(
        TokenizerError
    ):  # where the source has one that can be used, `differences` says so
        load_tokenizer(folder).decode(made[0])


def answer(compare: Callable[..., dict[str, Any]]) -> None:
    """Read the arguments, answer on standard output."""
    folder, probe_file, threads, *source = sys.argv[1:]
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(int(threads))
    try:
        with torch.no_grad():
            found: dict[str, Any] = compare(Path(folder), Path(probe_file), *map(Path, source))
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the answer
        failure = machine_failure(error)
        found = {
            "error": f"{type(error).__name__}: {error}"[:500],
            "machine": None if failure is None else failure.code,
        }
    sys.stdout.write(json.dumps(found))


def main() -> None:
    """The program."""
    answer(compare)


if __name__ == "__main__":
    main()

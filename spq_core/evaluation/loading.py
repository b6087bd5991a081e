"""Load models for measuring, and note what that took."""

import contextlib
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from spq_core.artifact.manifest import MANIFEST_FILE
from spq_core.artifact.read import load_model
from spq_core.errors import EvaluationError
from spq_core.evaluation.gguf import SUFFIX, GgufModel, LanguageModel
from spq_core.memory import peak_rss_bytes, reset_peak_rss, rss_bytes
from spq_core.models.weight_files import stored_bytes

DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")
COUNTED_FILES = ("config.json", MANIFEST_FILE)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadFigures:
    """What loading a folder took."""

    bytes_on_disk: int
    """Weight files, index, config.json and manifest."""
    resident_bytes: int | None
    """Bytes of parameters and buffers after load, each storage counted once; None of a model that was too large to load."""
    load_peak_bytes: int
    """Growth of resident memory at its highest point during load; 0 where unknown."""
    dtype: str


def choose_device(wanted: str) -> str:
    """Resolve `auto` to a CUDA device where there is one.

    Raises:
        EvaluationError: CUDA is asked for and not there.
    """
    available = torch.cuda.is_available()
    if wanted == "auto":
        return "cuda" if available else "cpu"
    if not DEVICE.fullmatch(wanted):
        raise EvaluationError(f"unknown device {wanted!r}; use auto, cpu, cuda or cuda:N")
    if wanted.startswith("cuda") and not available:
        raise EvaluationError(f"device {wanted!r} was asked for, but torch sees no CUDA device")
    return wanted


def resident_bytes(model: nn.Module) -> int:
    """Bytes of the model's parameters and buffers, shared storages counted once."""
    plain = [
        part for tensor in (*model.parameters(), *model.buffers()) for part in _plain_parts(tensor)
    ]
    return sum({part.untyped_storage().data_ptr(): part.nbytes for part in plain}.values())


def _plain_parts(tensor: Tensor) -> list[Tensor]:
    """The tensors behind one that only stands for them, as torchao's do."""
    flatten = getattr(tensor, "__tensor_flatten__", None)
    if flatten is None:
        return [tensor]
    names, _ = flatten()
    return [part for name in names for part in _plain_parts(getattr(tensor, name))]


def load(folder: Path, device: str, length: int) -> tuple[LanguageModel, LoadFigures]:
    """Load a folder or a GGUF file.

    Args:
        length: tokens of a window, which a GGUF file is opened for.

    Raises:
        EvaluationError: another library's artifact, without that library.
    """
    before = rss_bytes()
    known = reset_peak_rss()
    model: LanguageModel
    if folder.suffix == SUFFIX:
        model = GgufModel(folder, length)
        on_disk, resident, dtype = folder.stat().st_size, model.resident_bytes, model.dtype
    else:
        try:
            found = load_model(folder, device=device)
        except ImportError as error:  # another library's artifact, without that library
            raise EvaluationError(f"{folder.name}: {error}") from None
        on_disk = stored_bytes(folder, COUNTED_FILES)
        resident, dtype = resident_bytes(found), str(found.config.dtype).removeprefix("torch.")
        model = found if device == str(found.device) else found.to(device)
    return model, LoadFigures(
        bytes_on_disk=on_disk,
        resident_bytes=resident,
        load_peak_bytes=max(0, peak_rss_bytes() - before) if known else 0,
        dtype=dtype,
    )


def widen(model: PreTrainedModel, device: str) -> None:
    """On a CPU compute in float32, unless another library quantized the model and does not let it be cast."""
    if device == "cpu":
        with contextlib.suppress(ValueError):
            model.to(torch.float32)

"""Load a compressed artifact: checked against its manifest, then through the public loader."""

from pathlib import Path

import torch
from transformers import PreTrainedModel

from spq_core.artifact.gguf_file import gguf_file, load_gguf
from spq_core.artifact.manifest import read_manifest, verify_files
from spq_core.errors import WeightsMismatchError
from spq_core.formats.residency import kept_coded
from spq_core.models.auto_class import auto_class_of

SHOWN = 3


def load_artifact(
    folder: Path, dtype: torch.dtype | None = None, *, coded: float = 0.0
) -> PreTrainedModel:
    """Verify every file's digest and load the model.

    Args:
        coded: share of the bytes of codes stored by entropy that stay coded in memory, and are decoded at each use: less memory,
            more time (`artifact.residency` chooses one).

    Raises:
        ArtifactError: the manifest is missing or malformed, or a file is missing.
        DigestMismatchError: a file's bytes changed.
    """
    verify_files(folder, read_manifest(folder))
    with kept_coded(coded):
        return load_model(folder, dtype)


def load_model(
    folder: Path, dtype: torch.dtype | None = None, device: str = "cpu"
) -> PreTrainedModel:
    """Load any local model folder, ours or not, for inference; never runs code from it.

    Raises:
        WeightsMismatchError: a tensor is missing, or has another shape than the model's.
    """
    file = gguf_file(folder)
    if file is not None:
        return load_gguf(folder, file).to(device)
    try:
        model, info = auto_class_of(folder).from_pretrained(
            folder,
            dtype=dtype or "auto",
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            device_map=None if device == "cpu" else device,
        )
    except RuntimeError as error:
        if "mismatched" not in str(error):
            raise
        raise WeightsMismatchError(
            f"{folder.name}: weights have other shapes than config.json asks for; they belong to different models"
        ) from None
    missing = sorted(info["missing_keys"])
    if missing:
        raise WeightsMismatchError(
            f"{folder.name}: the weight files lack {', '.join(missing[:SHOWN])}"
            f"{f' and {len(missing) - SHOWN} more' if len(missing) > SHOWN else ''}; "
            "transformers would have filled them with random numbers"
        )
    model.eval()
    return model

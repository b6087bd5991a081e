"""Load a compressed artifact: checked against its manifest, then through the public loader."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from spq_core.artifact.manifest import read_manifest, verify_files


def load_artifact(folder: Path, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """Verify every file's digest and load the model.

    Raises:
        ArtifactError: the manifest is missing or malformed, or a file is missing.
        DigestMismatchError: a file's bytes changed.
    """
    verify_files(folder, read_manifest(folder))
    return load_model(folder, dtype)


def load_model(folder: Path, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """Load any local model folder, ours or not, for inference; never runs code from it."""
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=dtype or "auto",
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
    )
    model.eval()
    return model

"""Which architectures are accepted before any weight is read.

The structure of a loaded model decides what the stages touch (`spq_core.families.family`); this
table only says which model types a repository may ask transformers to build, so that an unknown
one is refused from its config.json alone. It is free of torch.
"""

from collections.abc import Mapping
from typing import Any

from spq_core.errors import UnsafeModelError, UnsupportedModelError

SUPPORTED_MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3", "smollm3", "opt")
ARTIFACT_PREFIX = "spq_"


def check_config(config: Mapping[str, Any]) -> str:
    """Return the model type of a config.json that we are willing to build.

    Raises:
        UnsafeModelError: it is quantized already, is one of our artifacts, or asks for remote code.
        UnsupportedModelError: its model type is not in the table.
    """
    model_type = config.get("model_type")
    if isinstance(model_type, str) and model_type.startswith(ARTIFACT_PREFIX):
        raise UnsafeModelError(
            "already_quantized",
            f"model_type {model_type!r} is a compressed artifact already; name its base model",
        )
    if config.get("quantization_config") or config.get("compression_config"):
        raise UnsafeModelError(
            "already_quantized",
            "config.json has a quantization_config: compressing quantized weights again hurts; name the base model",
        )
    if config.get("auto_map"):
        raise UnsafeModelError(
            "unsafe_config",
            "config.json has an auto_map, which loads code from the repository; we never run that",
        )
    if model_type not in SUPPORTED_MODEL_TYPES:
        raise UnsupportedModelError(
            f"model type {model_type!r} is not supported; supported are {', '.join(SUPPORTED_MODEL_TYPES)}"
        )
    return str(model_type)

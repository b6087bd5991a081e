"""A folder's config.json as transformers reads it, and what it says where it cannot."""

from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from spq_core.errors import UnsupportedModelError
from spq_core.models.model_folder import read_json_object

MOST_CHARACTERS = 400


def read_config(folder: Path) -> PreTrainedConfig:
    """Return the configuration.

    Raises:
        UnsupportedModelError: transformers cannot read it; with its reason.
    """
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever a value of a stranger's configuration makes happen there
        raise no_model_of(folder, error) from error


def no_model_of(folder: Path, error: Exception) -> UnsupportedModelError:
    """The error of a configuration that transformers cannot build a model from, in one line."""
    reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
    if isinstance(error, KeyError) and error.args:
        config = read_json_object(folder / "config.json")
        keys = [key for key, value in config.items() if _holds(value, error.args[0])]
        if keys:
            reason = f"{keys[0]} {error.args[0]!r} is none that it knows"
    return UnsupportedModelError(
        f"transformers cannot build a model from this config.json: {reason}"[:MOST_CHARACTERS]
    )


def _holds(value: Any, wanted: object) -> bool:
    return value == wanted or (isinstance(value, dict) and wanted in value.values())

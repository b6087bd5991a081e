"""Which of transformers' classes builds a model: a causal language model, or one with a text tower among others."""

from typing import Any

from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from spq_core.models.architectures import ARTIFACT_PREFIX, WRAPPER_TYPES
from spq_core.models.config import read_config


def auto_class(config: PretrainedConfig) -> Any:
    """The class whose `from_config` and `from_pretrained` build the whole model."""
    base = str(config.model_type).removeprefix(ARTIFACT_PREFIX)
    whole = base in WRAPPER_TYPES and type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    return AutoModelForImageTextToText if whole else AutoModelForCausalLM


def auto_class_of(folder: Any) -> Any:
    """The same of a folder."""
    return auto_class(read_config(folder))


def text_config(config: PretrainedConfig) -> PretrainedConfig:
    """That of the part that reads and writes text; the configuration itself where there is no other."""
    found: PretrainedConfig = config.get_text_config(decoder=True)
    return found

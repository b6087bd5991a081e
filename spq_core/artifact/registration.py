"""Teach transformers to load our artifacts, and to fail loudly without us.

An artifact's model type is `spq_<base>`, which stock transformers does not know: it raises instead
of filling the layers with random numbers, as it would for an unknown quantization method alone.
"""

from collections.abc import Callable
from functools import wraps
from types import ModuleType
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
)
from transformers.quantizers import register_quantization_config, register_quantizer
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

from spq_core.artifact.base_type import look_up_as_base
from spq_core.artifact.quantizer import SpqConfig, SpqQuantizer
from spq_core.formats.exact_parts import ExactParts
from spq_core.formats.profiles.format import CLASS_PREFIX, METHOD
from spq_core.models.architectures import ALL_MODEL_TYPES, ARTIFACT_PREFIX, WRAPPER_TYPES


def register(_transformers: ModuleType | None = None) -> None:
    """Register the quantization method, and model types of artifacts as their configurations are read; once."""
    if METHOD in AUTO_QUANTIZER_MAPPING:
        return
    register_quantization_config(METHOD)(SpqConfig)
    register_quantizer(METHOD)(SpqQuantizer)
    look_up_as_base()
    read = PretrainedConfig.get_config_dict.__func__
    PretrainedConfig.get_config_dict = classmethod(wraps(read)(_noticing(read)))


def _noticing(read: Callable[..., Any]) -> Callable[..., Any]:
    """`get_config_dict` that registers the type of an artifact: each type imports a module of transformers, so none is before."""

    def noticed(cls: type, *inputs: Any, **named: Any) -> Any:
        document, unused = read(cls, *inputs, **named)
        model_type = str(document.get("model_type", ""))
        base = model_type.removeprefix(ARTIFACT_PREFIX)
        if base != model_type and base in ALL_MODEL_TYPES:
            register_type(base)
        return document, unused

    return noticed


def register_type(model_type: str) -> None:
    """Register the type of artifacts whose source has this type; once."""
    ours = f"{ARTIFACT_PREFIX}{model_type}"
    if ours in CONFIG_MAPPING:
        return
    config_class: type[PretrainedConfig] = CONFIG_MAPPING[model_type]
    whole = model_type in WRAPPER_TYPES and config_class in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    mapping = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING if whole else MODEL_FOR_CAUSAL_LM_MAPPING
    model_class: type[PreTrainedModel] = mapping[config_class]
    our_config = type(
        f"{CLASS_PREFIX}{config_class.__name__}",
        (config_class,),
        {"model_type": ours, "__module__": __name__},
    )
    our_model = type(
        f"{CLASS_PREFIX}{model_class.__name__}",
        (model_class,),
        {
            "config_class": our_config,
            "__module__": __name__,
            "dtype": property(_activation_dtype),
        },
    )
    for made in (our_config, our_model):
        globals()[made.__name__] = made  # where copies of a model look for its class
    AutoConfig.register(ours, our_config)
    AutoModelForCausalLM.register(our_config, our_model)
    if whole:
        AutoModelForImageTextToText.register(our_config, our_model)


def _activation_dtype(model: PreTrainedModel) -> torch.dtype:
    """The dtype the model computes in: of a floating-point parameter that is no scale.

    Scales stay float32 whatever the model is cast to; they would be taken for it.
    """
    for module in model.modules():
        exact = module.exact if isinstance(module, ExactParts) else ()
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.is_floating_point() and name not in exact:
                found: torch.dtype = parameter.dtype
                return found
    return torch.float32

"""The quantized forms that are widened, by what a config.json says of them. Free of torch."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from spq_core.errors import UnsafeModelError
from spq_core.models.quantized.mxfp4 import mxfp4_wholes
from spq_core.models.quantized.scaled import scaled_wholes
from spq_core.models.quantized.whole import Whole
from spq_core.models.weight_files import WeightHeader

KEY = "quantization_config"
SHOWN = 60


Wholes = Callable[[Mapping[str, WeightHeader], Mapping[str, Any]], dict[str, Whole]]


class Form(NamedTuple):
    """How weights were quantized."""

    name: str
    """In words of its config."""
    wholes: Wholes
    """The model's tensors, of what is stored and the form's own settings."""


FORMS: dict[str, Wholes] = {
    "fp8": scaled_wholes,
    "fbgemm_fp8": scaled_wholes,
    "compressed-tensors": scaled_wholes,
    "mxfp4": mxfp4_wholes,
}
SCALED_FORMATS = ("float-quantized", "int-quantized", "naive-quantized")
"""Of compressed-tensors, those that store a code and its scale in tensors of their own."""


CHANGING = ("transform_config", "sparsity_config")
"""Settings beside codes and scales without which these are another model's."""


def is_quantized(config: Mapping[str, Any]) -> bool:
    """Whether a config.json says that its weights are quantized."""
    return bool(config.get(KEY) or config.get("compression_config"))


def form_of(config: Mapping[str, Any]) -> Form:
    """The form of a quantized model's weights.

    Raises:
        UnsafeModelError: it is none that is widened; it is named.
    """
    settings = config.get(KEY) or config.get("compression_config")
    if not isinstance(settings, dict):
        raise UnsafeModelError(
            "unsafe_config",
            f"config.json: {KEY} is {str(settings)[:SHOWN]!r}, expected an object with quant_method",
        )
    method = str(settings.get("quant_method"))[:SHOWN]
    stored = str(settings.get("format"))[:SHOWN]
    changing = [key for key in CHANGING if settings.get(key)]
    if changing:
        raise UnsafeModelError(
            "already_quantized",
            f"config.json: {KEY}.{changing[0]} changes what weights mean, which is not widened; name the model that they were made from",
        )
    if method == "compressed-tensors" and stored not in SCALED_FORMATS:
        method = f"compressed-tensors ({stored})"
    if method not in FORMS:
        raise UnsafeModelError(
            "already_quantized",
            f"config.json: weights are quantized by {method!r}, which is not widened here (widened are fp8, fbgemm_fp8, mxfp4, and "
            f"compressed-tensors stored as {', '.join(SCALED_FORMATS)}); name the model they were made from",
        )
    return Form(method, FORMS[method])


def wholes_of(config: Mapping[str, Any], tensors: Mapping[str, WeightHeader]) -> dict[str, Whole]:
    """The tensors of a quantized model as they are when widened, and what each is made of.

    Args:
        config: its config.json.
        tensors: as they are stored.

    Raises:
        UnsafeModelError: the form is none that is widened.
        ArtifactError: parts of a tensor are missing, or do not go together.
    """
    settings = config.get(KEY) or config.get("compression_config") or {}
    return form_of(config).wholes(tensors, settings)


def widened_headers(
    config: Mapping[str, Any], tensors: Mapping[str, WeightHeader]
) -> Mapping[str, WeightHeader]:
    """What the headers would say if the weights were widened; as they are where nothing is quantized.

    Raises:
        UnsafeModelError, ArtifactError: see `wholes_of`.
    """
    if not is_quantized(config):
        return tensors
    return {name: whole.header for name, whole in wholes_of(config, tensors).items()}


def widened_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json without the word that its weights are quantized.

    Raises:
        UnsafeModelError: they are in a form that is not widened.
    """
    if is_quantized(config):
        form_of(config)
    return {key: value for key, value in config.items() if key not in {KEY, "compression_config"}}

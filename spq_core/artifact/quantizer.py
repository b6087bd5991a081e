"""How transformers builds a `compact` artifact: modules from their layouts, then weights.

The folder's config.json names our quantization method and lists a layout per changed module. The
modules are made on the meta device before transformers reads the first tensor, so codes go from
the file to their place and no floating-point weight ever exists.
"""

from itertools import chain
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.quantizers import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from spq_core.artifact.verify import check_stored
from spq_core.errors import ArtifactError
from spq_core.formats.conversion import stored_state, tied_parts, to_runtime
from spq_core.formats.layouts import install, parse_layouts
from spq_core.formats.profiles.format import FORMAT_VERSION, METHOD
from spq_core.formats.residency import fraction_asked_for
from spq_core.models.experts import separate_experts


class SpqConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """The `quantization_config` of an artifact."""

    def __init__(
        self,
        format_version: int = FORMAT_VERSION,
        modules: dict[str, Any] | None = None,
        tied: dict[str, str] | None = None,
        **ignored: Any,
    ) -> None:
        del ignored
        self.quant_method = METHOD
        self.format_version = format_version
        self.modules = modules or {}
        self.tied = tied or {}
        if format_version != FORMAT_VERSION:
            raise ArtifactError(
                f"the artifact has format version {format_version}, this package reads {FORMAT_VERSION}; upgrade it"
            )


OF_THEIR_OWN = ("inv_freq", "position_ids", "embed_scale", "token_type_ids")
"""Buffers that their own modules fill."""


def _fill_buffers(model: PreTrainedModel) -> None:
    """Let the parts of a model compute what they keep for their layers and files do not hold (Falcon-H1).

    transformers skips that where a class is not its own, as ours is not. Nothing that was loaded is touched.
    """
    computed = {name for name, _ in model.named_non_persistent_buffers()}
    if all(name.endswith(OF_THEIR_OWN) for name in computed):
        return
    loaded: Any
    for name, loaded in chain(model.named_parameters(), model.named_buffers()):
        if name not in computed:
            loaded._is_hf_initialized = True  # noqa: SLF001 - where transformers looks
    for part in model.modules():
        if isinstance(part, PreTrainedModel) and part is not model:
            part._init_weights(part)  # noqa: SLF001 - likewise


class SpqQuantizer(HfQuantizer):  # type: ignore[misc]
    """Puts empty compressed modules in place before weights are loaded."""

    requires_calibration = True

    def _process_model_before_weight_loading(
        self,
        model: PreTrainedModel,
        dtype: torch.dtype | None = None,
        checkpoint_files: list[str] | None = None,
        **_: Any,
    ) -> PreTrainedModel:
        separate_experts(model)
        layouts = parse_layouts(self.quantization_config.modules)
        install(model, layouts, dtype or torch.get_default_dtype())
        tied = dict(self.quantization_config.tied)
        if tied:
            model._tied_weights_keys = tied  # noqa: SLF001
            model.all_tied_weights_keys = tied
        if checkpoint_files:
            paths = [Path(file) for file in checkpoint_files]
            check_stored(model, paths, model.all_tied_weights_keys)
        return model

    def _process_model_after_weight_loading(
        self, model: PreTrainedModel, **_: Any
    ) -> PreTrainedModel:
        """Put matrices in the form that computes."""
        _fill_buffers(model)
        to_runtime(model, fraction_asked_for())
        if self.quantization_config.tied:  # what `tie_weights` looks for when it is called again
            tied = tied_parts(model, self.quantization_config.tied.items())
            model._tied_weights_keys = tied  # noqa: SLF001
            model.all_tied_weights_keys = tied
        return model

    def is_serializable(self) -> bool:
        """`save_pretrained` may write the model again."""
        return True

    def get_state_dict_and_metadata(
        self, model: PreTrainedModel
    ) -> tuple[dict[str, torch.Tensor] | None, dict[str, str]]:
        """Give `save_pretrained` what computes in another form in its stored form again."""
        config = self.quantization_config
        return stored_state(model, config.modules, config.tied), {}

    @property
    def is_trainable(self) -> bool:
        """8-bit codes take no gradient."""
        return False

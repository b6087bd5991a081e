"""LoRA adapters by PEFT on top of a loaded artifact. Needs `peft`.

    model = get_peft_model(model, lora_config(r=8, target_modules=["q_proj", "v_proj"]))

PEFT knows the layers it may wrap by their classes; ours are made known to one configuration. Codes
stay as they are, so adapters are not merged into them: keep them beside the artifact, or train them on
the source.
"""

from typing import Any, cast

from peft import LoraConfig
from peft.tuners.lora import Linear as LoraLinear
from torch import nn

from spq_core.errors import ArtifactError
from spq_core.formats.layer import CompressedLinear


def lora_config(**settings: Any) -> LoraConfig:
    """A `LoraConfig` whose targets may be layers of codes."""
    config = LoraConfig(**settings)
    config._register_custom_module({CompressedLinear: CodedLora})  # noqa: SLF001 - documented for this
    return config


class CodedLora(LoraLinear):
    """An adapter beside a layer of codes."""

    def _get_in_out_features(self, module: nn.Module) -> tuple[int, int]:
        """PEFT asks the classes it knows; ours say it themselves."""
        linear = cast("CompressedLinear", module)  # as registered above
        return linear.in_features, linear.out_features

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:  # noqa: FBT001, FBT002
        """Refuse.

        Raises:
            ArtifactError: always.
        """
        del safe_merge, adapter_names
        raise ArtifactError(
            "adapters cannot be merged into codes of 8 or 4 bits; keep them beside the artifact, or "
            "merge them into the source and compress that"
        )

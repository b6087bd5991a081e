"""The methods there are: one line each. Free of torch.

A method is a folder with settings (`settings.py`, free of torch) and the stage that does the work. The
stage is imported when one is made (`making`), so that recipes can be read where there is no torch.
"""

from typing import NamedTuple, get_args

from spq_core.methods.double_compression.settings import DoubleCompressionSettings
from spq_core.methods.expert_pruning.settings import PruneExpertsSettings
from spq_core.methods.head_pruning.settings import PruneHeadsSettings
from spq_core.methods.pruning.settings import PruneSettings
from spq_core.methods.quantization.settings import QuantizeSettings
from spq_core.methods.recovery.settings import RecoverSettings
from spq_core.methods.settings import StageSettings
from spq_core.methods.spectra.settings import SpectrumSettings
from spq_core.methods.svd.settings import SvdSettings


class Method(NamedTuple):
    """Settings, and the module whose `make_stage` makes a stage of them."""

    settings: type[StageSettings]
    module: str

    @property
    def name(self) -> str:
        """Its `type` in recipes."""
        (name,) = get_args(self.settings.model_fields["type"].annotation)
        return str(name)


METHODS = (
    Method(SvdSettings, "spq_core.methods.svd.stage"),
    Method(SpectrumSettings, "spq_core.methods.spectra.stage"),
    Method(PruneSettings, "spq_core.methods.pruning.stage"),
    Method(PruneHeadsSettings, "spq_core.methods.head_pruning.stage"),
    Method(PruneExpertsSettings, "spq_core.methods.expert_pruning.stage"),
    Method(QuantizeSettings, "spq_core.methods.quantization.stages"),
    Method(DoubleCompressionSettings, "spq_core.methods.double_compression.stage"),
    Method(RecoverSettings, "spq_core.methods.recovery.stage"),
)

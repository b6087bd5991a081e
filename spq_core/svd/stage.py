"""The SVD stage: attention projections become low-rank pairs where that saves elements."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from spq_core.families.family import Family
from spq_core.layers.low_rank_linear import LowRankLinear
from spq_core.layers.slicing import bias_of, dense_linear, float_weight, linear_at
from spq_core.recipe import SvdStage as SvdSettings
from spq_core.report import ModuleReport
from spq_core.svd.factorize import decompose, truncate
from spq_core.svd.rank import decide_rank


@dataclass(frozen=True, slots=True)
class SvdStage:
    """Wiring only; the mathematics is in `rank` and `factorize`."""

    settings: SvdSettings
    family: Family
    name: str = "svd"
    needs_survey: bool = False
    needs_calibration: bool = False

    def survey(self, path: str, block: nn.Module, run_samples: Callable[[], None]) -> None:
        """Nothing to learn: each matrix decides for itself."""

    def apply(self, path: str, block: nn.Module) -> list[ModuleReport]:
        """Factorise the block's attention projections."""
        present = dict(block.named_modules())
        return [
            self._factorise(path, block, name) for name in self.family.attention if name in present
        ]

    def _factorise(self, path: str, block: nn.Module, name: str) -> ModuleReport:
        layer = linear_at(block, name)
        weight = float_weight(layer)
        spectrum = decompose(weight)
        n_out, n_in = weight.shape
        decision = decide_rank(spectrum.singular_values, (n_out, n_in), self.settings.variance)
        if decision.factorise:
            up, down = truncate(weight, spectrum, decision.rank)
            block.set_submodule(
                name, LowRankLinear(dense_linear(down, None), dense_linear(up, bias_of(layer)))
            )
        return ModuleReport(
            layer=f"{path}.{name}",
            stage=self.name,
            applied=decision.factorise,
            reason=decision.reason,
            figures={
                "rank": decision.rank,
                "rank_by_variance": decision.rank_by_variance,
                "full_rank": min(n_out, n_in),
            },
        )

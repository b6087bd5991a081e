"""The stage that removes experts."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from spq_core.errors import RecipeError
from spq_core.methods.expert_pruning.scores import RunningScores, strongest
from spq_core.methods.expert_pruning.settings import GROUP_COUNTS, PruneExpertsSettings
from spq_core.methods.stage import StageContext, Stateless
from spq_core.models.experts import SeparateExperts, cut_experts, modules_of_experts
from spq_core.report import ModuleReport
from spq_core.streaming.experts import require_seen
from spq_core.streaming.inputs import LayerInputs

CHOSEN_COUNTS = (
    "num_experts_per_tok",
    "num_experts_per_token",
    "moe_k",
    "moe_topk",
    "top_k_experts",
)


@dataclass(slots=True)
class PruneExpertsStage(Stateless):
    """Scores a layer's experts on the samples, and keeps the strongest."""

    settings: PruneExpertsSettings
    kept: int
    groups: int = 1
    name: str = "prune-experts"
    needs_inputs: bool = True

    def apply(self, path: str, block: nn.Module, inputs: LayerInputs | None) -> list[ModuleReport]:
        """Cut a layer's experts and its router."""
        if not path or inputs is None:
            return []
        return [
            self._cut(f"{path}.{name}", block, name, experts, inputs)
            for name, experts in list(modules_of_experts(block))
        ]

    def _cut(
        self, full: str, block: nn.Module, name: str, experts: SeparateExperts, inputs: LayerInputs
    ) -> ModuleReport:
        found = RunningScores(experts.num_experts)
        with _scoring(experts, found):
            for batch in inputs.batches:
                inputs.forward(batch)
        require_seen(full, found.tokens.tolist())
        scores = self._scores(full, found)
        kept = strongest(scores, self.kept, self.groups)
        figures: dict[str, float | int | str] = {
            "experts": experts.num_experts,
            "kept": self.kept,
            "unseen": int((found.tokens == 0).sum()),
            "lost_contribution": 1
            - float(found.contributions[kept].sum() / found.contributions.sum()),
        }
        cut_experts(block, name, kept)
        inputs.removed()
        return ModuleReport(layer=full, stage=self.name, applied=True, figures=figures)

    def _scores(self, full: str, found: RunningScores) -> Float[Tensor, " n_experts"]:
        if self.settings.score == "reap":
            return found.reap()
        if self.settings.score == "frequency":
            return found.tokens.double()
        seed = int.from_bytes(hashlib.sha256(full.encode()).digest()[:4], "big")
        generator = torch.Generator().manual_seed(seed)
        return torch.rand(len(found.tokens), generator=generator)


@contextmanager
def _scoring(experts: SeparateExperts, found: RunningScores) -> Iterator[None]:
    """Add what every expert makes of the tokens that reach it, with the router's weights."""
    routing: list[tuple[Int64[Tensor, "tokens k"], Float[Tensor, "tokens k"]]] = []

    def note(_module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        values = [*arguments, *named.values()]
        routing[:] = [(values[1].flatten(0, -2), values[2].flatten(0, -2))]

    def add(index: int, _module: nn.Module, _arguments: object, output: Tensor) -> None:
        chosen, weights = routing[0]
        found.add(index, weights[torch.where(chosen == index)], output.detach())

    handles = [experts.register_forward_pre_hook(note, with_kwargs=True)]
    for index in range(experts.num_experts):
        last = experts.get_submodule(f"{index}.down_proj")
        handles.append(last.register_forward_hook(partial(add, index)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def make_stage(settings: PruneExpertsSettings, context: StageContext) -> PruneExpertsStage:
    """For the number of experts that the model has.

    Raises:
        RecipeError: fewer would stay than a token is routed to.
    """
    config = context.skeleton.text_config.to_dict()
    name, kept = settings.kept_experts(config)
    chosen = next((int(config[one]) for one in CHOSEN_COUNTS if config.get(one)), 1)
    if kept < chosen:
        raise RecipeError(
            f"prune-experts: ratio {settings.ratio:g} leaves {kept} of {config[name]} experts, and each token is routed "
            f"to {chosen}; lower it"
        )
    groups = next((int(config[one]) for one in GROUP_COUNTS if config.get(one)), 1)
    return PruneExpertsStage(settings, kept, groups)

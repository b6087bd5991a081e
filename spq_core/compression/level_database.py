"""Every part of the layers at every level, on disk, and how far whole models of them are from the source."""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Int64
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from spq_core.formats.slicing import bias_of, dense_linear, float_weight, linear_at
from spq_core.methods.pruning.levels import pruned_at
from spq_core.methods.pruning.settings import PruneSettings
from spq_core.methods.quantization.levels import rounded_at
from spq_core.methods.quantization.settings import QuantizeSettings
from spq_core.methods.settings import StageSettings
from spq_core.methods.svd.levels import truncated_at
from spq_core.methods.svd.settings import SvdSettings
from spq_core.models.blocks import blocked_source
from spq_core.models.checkpoint import Checkpoint
from spq_core.models.skeleton import Skeleton
from spq_core.planning.evolution import Levels
from spq_core.streaming.head import Head, mean_divergence
from spq_core.streaming.sensitivity import LayerStatistics
from spq_core.streaming.stream import begin_stream, final_states


@dataclass(slots=True)
class LevelDatabase:
    """Filled while the source is looked at; candidates are then made of it, layer by layer, all at once."""

    folder: Path
    skeleton: Skeleton
    checkpoint: Checkpoint
    stages: Sequence[StageSettings]
    """Those whose amounts are open say what levels there are."""
    rows: Int64[Tensor, "n length"]
    """What candidates are compared with the source on."""

    def visit(self, index: int, layer: nn.Module, found: LayerStatistics) -> None:
        """Make a layer's matrices at every level, on what they receive in the source."""
        self.folder.mkdir(parents=True, exist_ok=True)
        tensors = {
            f"{name}.{level}": weight.to(torch.bfloat16).cpu().contiguous()
            for stage in self.stages
            if stage.is_auto
            for name, level, weight in self._at_levels(stage, layer, found)
        }
        save_file(tensors, self._file(index))

    def _at_levels(
        self, stage: StageSettings, layer: nn.Module, found: LayerStatistics
    ) -> Iterator[tuple[str, int, Tensor]]:
        family = self.skeleton.family
        for name, statistics in found.matrices.items():
            weight = float_weight(linear_at(layer, name))
            inputs, counts = statistics.inputs, statistics.output_weights
            made: Iterator[tuple[int, Tensor]] = iter(())
            if isinstance(stage, QuantizeSettings):
                made = rounded_at(weight, inputs.second_moment, stage)
            elif isinstance(stage, SvdSettings) and name in stage.matrices(family):
                made = truncated_at(weight, counts, inputs)
            elif isinstance(stage, PruneSettings) and name == family.mlp_out:
                made = pruned_at(weight, counts, inputs, stage)
            for level, changed in made:
                yield name, level, changed

    def divergences(self, candidates: Sequence[Levels], n_rows: int) -> list[float]:
        """KL of each candidate's predictions from the source's, in nats per token; embedding and head are the source's."""
        rows = self.rows[:n_rows]
        source = blocked_source(self.skeleton, self.checkpoint)
        wanted = final_states(source, rows)
        streams = [begin_stream(self.skeleton, source.rest(), rows) for _ in candidates]
        for index in range(self.skeleton.n_layers):
            path, stored = self.skeleton.layer_path(index), load_file(self._file(index))
            layer = source.layer(index)
            for stream, levels in zip(streams, candidates, strict=True):
                for name in {part.rpartition(".")[0] for part in stored}:
                    weight = stored[f"{name}.{levels[f'{path}.{name}']}"].to(stream.hidden[0])
                    bias = bias_of(linear_at(layer, name))
                    layer.set_submodule(name, dense_linear(weight, bias))
                stream.advance(index, layer)
        rest = source.rest()
        head = Head(rest, self.skeleton)
        return [
            mean_divergence(
                head, wanted, head, stream.at_head(self.skeleton, rest, range(len(rows)))
            )
            for stream in streams
        ]

    def remove(self) -> None:
        """Free its disk."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _file(self, index: int) -> Path:
        return self.folder / f"layer-{index}.safetensors"

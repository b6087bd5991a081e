"""Every matrix of the layers at every width, on disk, and how far whole models of them are from the source."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Int64
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from spq_core.formats.slicing import bias_of, dense_linear, float_weight, linear_at
from spq_core.methods.quantization.levels import rounded_at
from spq_core.methods.quantization.settings import QuantizeSettings
from spq_core.models.blocks import blocked_source
from spq_core.models.checkpoint import Checkpoint
from spq_core.models.skeleton import Skeleton
from spq_core.planning.evolution import Widths
from spq_core.streaming.head import Head, mean_divergence
from spq_core.streaming.sensitivity import LayerStatistics
from spq_core.streaming.stream import begin_stream, final_states


@dataclass(slots=True)
class WidthDatabase:
    """Filled while the source is looked at; candidates are then made of it, layer by layer, all at once."""

    folder: Path
    skeleton: Skeleton
    checkpoint: Checkpoint
    settings: QuantizeSettings
    rows: Int64[Tensor, "n length"]
    """What candidates are compared with the source on."""

    def visit(self, index: int, layer: nn.Module, found: LayerStatistics) -> None:
        """Round a layer's matrices at every width, on what they receive in the source."""
        self.folder.mkdir(parents=True, exist_ok=True)
        tensors: dict[str, Tensor] = {}
        for name, statistics in found.matrices.items():
            weight = float_weight(linear_at(layer, name))
            second_moment = statistics.inputs.second_moment
            for bits, rounded in rounded_at(weight, second_moment, self.settings):
                tensors[f"{name}.{bits}"] = rounded.to(torch.bfloat16).cpu()
        save_file(tensors, self._file(index))

    def divergences(self, candidates: Sequence[Widths], n_rows: int) -> list[float]:
        """KL of each candidate's predictions from the source's, in nats per token; embedding and head are the source's."""
        rows = self.rows[:n_rows]
        source = blocked_source(self.skeleton, self.checkpoint)
        wanted = final_states(source, rows)
        streams = [begin_stream(self.skeleton, source.rest(), rows) for _ in candidates]
        for index in range(self.skeleton.n_layers):
            path, stored = self.skeleton.layer_path(index), load_file(self._file(index))
            layer = source.layer(index)
            for stream, widths in zip(streams, candidates, strict=True):
                for name in {part.rpartition(".")[0] for part in stored}:
                    rounded = stored[f"{name}.{widths[f'{path}.{name}']}"].to(stream.hidden[0])
                    bias = bias_of(linear_at(layer, name))
                    layer.set_submodule(name, dense_linear(rounded, bias))
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

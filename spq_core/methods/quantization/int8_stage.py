"""Plain 8-bit rounding: every linear layer, and on request the embedding, becomes 8-bit (the paper's stage, and `int8`)."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn

from spq_core.formats.int8.linear import Int8Embedding, Int8Linear
from spq_core.formats.slicing import bias_of, float_linears, is_table, linear_at, output_scale_of
from spq_core.methods.quantization.granularity import per_channel_names
from spq_core.methods.quantization.int8 import (
    QuantizedWeight,
    dequantize,
    quantize_per_channel,
    quantize_per_tensor,
)
from spq_core.methods.quantization.settings import QuantizeSettings, ScaleMode
from spq_core.methods.stage import StageState
from spq_core.models.family import Family
from spq_core.report import ModuleReport
from spq_core.streaming.inputs import LayerInputs

WHOLE_MODEL_MODES = frozenset({ScaleMode.MIX_PERCENTILE, ScaleMode.MIX_MEANSTD})


@dataclass(slots=True)
class Int8Stage:
    """Rounds to 8 bits; `mix_percentile` and `mix_meanstd` look at all row counts first."""

    settings: QuantizeSettings
    family: Family
    head_path: str
    embedding_path: str
    dtype: torch.dtype
    """The source's dtype: what a quantized embedding returns."""
    name: str = "quantize"
    needs_calibration: bool = False
    needs_inputs: bool = False
    shapes: dict[str, tuple[int, int]] = field(default_factory=dict)
    """(out, in) of each linear layer seen in the survey, by full name."""

    @property
    def needs_survey(self) -> bool:
        """Whether scales depend on the row counts of the whole model."""
        return self.settings.mode in WHOLE_MODEL_MODES

    def survey(self, path: str, block: nn.Module, run_samples: Callable[[], None]) -> None:
        """Note the shape of each linear layer, low-rank factors one by one."""
        del run_samples
        self.shapes.update(
            {
                _join(path, name): (linear.out_features, linear.in_features)
                for name, linear in self._matrices(path, block)
            }
        )

    def apply(self, path: str, block: nn.Module, inputs: LayerInputs | None) -> list[ModuleReport]:
        """Quantize the block's linear layers, and its embedding when it has one."""
        del inputs
        if not self.needs_survey:
            self.survey(path, block, lambda: None)
        per_channel = per_channel_names(
            self.settings.mode,
            self.shapes,
            mlp=tuple(self.family.matrices.difference(self.family.attention)),
            single_scale=(*self.family.attention, self.head_path),
        )
        reports: list[ModuleReport] = []
        embedding = self._embedding_of(path, block)
        if embedding is not None:
            reports.append(self._quantize_embedding(path, block, embedding))
        for name, linear in self._matrices(path, block):
            full = _join(path, name)
            quantized = _quantize(linear, per_channel=full in per_channel)
            replacement = Int8Linear.of(quantized.codes, quantized.scale, bias_of(linear))
            block.set_submodule(name, replacement)
            reports.append(self._report(full, linear, quantized))
        return reports

    def state(self) -> StageState:
        """The shapes seen so far."""
        return StageState({name: list(shape) for name, shape in self.shapes.items()}, {})

    def restore(self, state: StageState) -> None:
        """Take up the shapes."""
        self.shapes.update(
            {name: (rows, columns) for name, (rows, columns) in state.values.items()}
        )

    def _matrices(self, path: str, block: nn.Module) -> list[tuple[str, nn.Linear]]:
        """Of a layer those that its family names, or factors of them; routers and gates stay. A tied head is none any more."""
        found = list(float_linears(block))
        if not path:  # towers for images are none of our business
            text = self.embedding_path.rpartition(".")[0]
            return [
                (name, one)
                for name, one in found
                if name == self.head_path or name.startswith(f"{text}.")
            ]
        known = self.family.matrices
        return [(name, one) for name, one in found if known & {name, name.rpartition(".")[0]}]

    def _embedding_of(self, path: str, block: nn.Module) -> nn.Embedding | None:
        if not self.settings.embedding or path:
            return None
        module = block.get_submodule(self.embedding_path)
        return module if is_table(module) else None

    def _quantize_embedding(
        self, path: str, block: nn.Module, embedding: nn.Embedding
    ) -> ModuleReport:
        """One scale per token; a head tied to the embedding takes over codes and scales."""
        quantized = quantize_per_channel(embedding.weight.data)
        replacement = Int8Embedding(
            quantized.codes, quantized.scale, self.dtype, output_scale=output_scale_of(embedding)
        )
        head = linear_at(block, self.head_path)
        tied = head.weight is embedding.weight
        block.set_submodule(self.embedding_path, replacement)
        if tied:
            block.set_submodule(self.head_path, replacement.tied_head(bias_of(head)))
        return self._report(_join(path, self.embedding_path), embedding, quantized)

    def _report(
        self, full: str, source: nn.Linear | nn.Embedding, quantized: QuantizedWeight
    ) -> ModuleReport:
        return ModuleReport(
            layer=full,
            stage=self.name,
            applied=True,
            figures={
                "bits": self.settings.bits,
                "scales": quantized.scale.numel(),
                "relative_weight_error": relative_error(source.weight.data, quantized),
            },
        )


def relative_error(weight: torch.Tensor, quantized: QuantizedWeight) -> float:
    """Frobenius norm of the rounding error over that of the weight, in row blocks."""
    error = total = 0.0
    step = max(1, (4 << 20) // weight.shape[1])
    for start in range(0, weight.shape[0], step):
        rows = weight[start : start + step].float()
        scale = (
            quantized.scale
            if quantized.scale.numel() == 1
            else quantized.scale[start : start + step]
        )
        back = dequantize(QuantizedWeight(quantized.codes[start : start + step], scale))
        error += float((back - rows).double().square().sum())
        total += float(rows.double().square().sum())
    return (error / total) ** 0.5 if total else 0.0


def _quantize(linear: nn.Linear, *, per_channel: bool) -> QuantizedWeight:
    weight = linear.weight.data
    return quantize_per_channel(weight) if per_channel else quantize_per_tensor(weight)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name

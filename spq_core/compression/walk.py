"""Walk over a model's blocks, one in memory at a time, and let the stages of a recipe change them.

A pass walks over all blocks (decoder layers in order, then the rest of the model). A stage whose
choice depends on the whole model needs a pass of its own to look before it changes anything, so a
recipe is cut into passes at such stages; between passes, changed blocks lie on disk. The last pass
writes each finished block as a final shard.

Calibration samples travel with the pass: a block is changed on the inputs that the changed blocks
before it produce, and sends the samples on as it is after the change.
"""

from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor, nn
from transformers import PreTrainedModel

from spq_core.artifact.writer import ArtifactWriter, no_name, round_floats
from spq_core.compression.block_cache import BlockCache
from spq_core.compression.passes import Pass, plan_passes
from spq_core.data.samples import CalibrationSamples
from spq_core.formats.slicing import shares_matrix
from spq_core.memory import return_freed_memory
from spq_core.methods.stage import LearningStage, Stage, StageState, StageWithFiles
from spq_core.models.blocked import BlockedModel
from spq_core.models.blocks import blocked_source, load_layer, load_rest
from spq_core.models.checkpoint import Checkpoint
from spq_core.models.family import Family
from spq_core.models.skeleton import Skeleton
from spq_core.progress import Phase, PhaseKind, Progress
from spq_core.report import ModuleReport
from spq_core.streaming.head import Head, mean_divergence
from spq_core.streaming.inputs import LayerInputs
from spq_core.streaming.order import steps_of
from spq_core.streaming.reference import ReferenceActivations, begin_reference
from spq_core.streaming.run_state import RunState, StateFolder
from spq_core.streaming.settled import Settled, SettledInput
from spq_core.streaming.stream import (
    CalibrationStream,
    begin_stream,
    final_states,
    widen_small_parts,
)

KL_INFLATION = 2.0
"""KL measured over KL expected: errors of one layer meet those of the next (measured: 1.0 to 2.4)."""
NON_LAYER = ""
"""Path of the block that holds everything outside the decoder layers."""


@dataclass(slots=True)
class BlockWalk:
    """One compression while its passes run."""

    checkpoint: Checkpoint
    skeleton: Skeleton
    stages: tuple[Stage, ...]
    samples: CalibrationSamples | None
    progress: Progress
    writer: ArtifactWriter
    block_cache: BlockCache
    states: StateFolder
    unseen: Int64[Tensor, "m length"] | None = None
    """Text that nothing is fitted to, if the divergence from the source is to be measured on it."""
    probe_file: Path | None = None
    """Where to write what the result computes in memory, if that is asked for."""
    probe: ReferenceActivations | None = None
    kl_inflation: float = KL_INFLATION
    """What the plan took the measured divergence over the expected one to be."""
    divergence: float | None = None
    """KL from the source in nats per token, on text that nothing was fitted to."""
    head_shares_codes: bool = False
    reports: list[ModuleReport] = field(default_factory=list)

    def all_passes(self, found: RunState | None) -> list[ModuleReport]:
        """Walk all passes, from the state `found` if there is one, and return the stages' reports."""
        passes = plan_passes(self.stages)
        first_pass, first_block, hidden, probed = 0, 0, None, None
        if found is not None:
            first_pass, first_block = self._take_up(found)
            if first_block:  # else the samples start a pass of their own
                hidden, probed = found.tensors.get("hidden"), found.tensors.get("probe")
        for number in range(first_pass, len(passes)):
            one = passes[number]
            for stage in one.apply:
                if isinstance(stage, LearningStage):
                    stage.learn(self._student(), self.states.inner(stage.name))
            names = "+".join(stage.name for stage in one.apply) or "look"
            total = self.skeleton.n_layers + 1
            title = f"{names} (pass {number + 1}/{len(passes)})"
            walking = Phase(PhaseKind.COMPRESSING, f"pass-{number + 1}", title)
            self.progress.begin(walking, total - first_block, "blocks")
            if one.is_last and self.probe_file is not None:
                rest = load_rest(self.skeleton, self.checkpoint)
                self.probe = begin_reference(self.skeleton, rest, probed)
            self._one_pass(number, one, first_block, hidden)
            first_block, hidden = 0, None
        return self.reports

    def _one_pass(self, number: int, one: Pass, first: int, hidden: Tensor | None) -> None:
        stream = self._stream_for(one)
        if stream is not None and hidden is not None:
            stream.hidden = [hidden[i : i + 1] for i in range(len(hidden))]
        for position, path in list(enumerate(self._paths()))[first:]:
            return_freed_memory()
            block = self._load(position, path)
            inputs = self._inputs(stream, one, position, block)
            found = [report for stage in one.apply for report in stage.apply(path, block, inputs)]
            for report in found:
                self.progress.record("layer", asdict(report))
            self.reports += [*found, *_routing(path, self.skeleton.family, inputs)]
            if one.is_last:
                foreign = self.writer.foreign if path == NON_LAYER else no_name
                round_floats(block, self.writer.dtype, foreign)
            self._send_on(stream, one, position, path, block, inputs)
            if one.is_last and path == NON_LAYER and stream is not None:
                self._measure_divergence(stream, block)
            self._send_probe(position, block)
            if one.is_last:
                self._note_tying(path, block)
                self._write_beside(path, one)
                self.writer.write_block(position + 1, path, block, self._original(position, path))
            elif any(report.applied for report in found) or one.learns:
                self.block_cache.keep(number, path, block, self._original(position, path))
            self._save(number, position, stream)
            self.progress.advance(path or "embedding and head")

    def _write_beside(self, path: str, one: Pass) -> None:
        """Files that stages want beside the weights."""
        for stage in one.apply:
            if isinstance(stage, StageWithFiles) and (tensors := stage.beside()):
                self.writer.write_beside(path, tensors)

    def _send_on(
        self,
        stream: CalibrationStream | None,
        one: Pass,
        position: int,
        path: str,
        block: nn.Module,
        inputs: LayerInputs | None,
    ) -> None:
        """Let the survey look, and push the samples through the block, once."""

        def advance_fitted() -> None:
            if stream is not None and path != NON_LAYER:
                forward = None if inputs is None else inputs.forward
                stream.advance(position, block, range(self._n_fitted()), forward)

        if one.survey is not None:
            one.survey.survey(path, block, advance_fitted)
        if one.survey is None or not one.survey.needs_calibration:
            advance_fitted()
        if stream is not None and path != NON_LAYER:
            stream.advance(position, block, range(self._n_fitted(), len(stream.hidden)))

    def _send_probe(self, position: int, block: nn.Module) -> None:
        """Send the probe's tokens through a finished block, and write down what comes out."""
        if self.probe is None or self.probe_file is None:
            return
        if isinstance(block, PreTrainedModel):
            self.probe.write(self.probe_file, self.skeleton, block)
        else:
            self.probe.advance(position, block)

    def _inputs(
        self, stream: CalibrationStream | None, one: Pass, position: int, block: nn.Module
    ) -> LayerInputs | None:
        """What the stages of a pass may ask about a block."""
        if stream is None or not one.needs_inputs:
            return None
        settled, settled_input = None, None
        if position < self.skeleton.n_layers:
            family = self.skeleton.family
            present = {
                name for name, _ in block.named_modules() if name
            }  # without the block itself
            if family.attention_module in present:
                settled = Settled(block, family.attention_module, family.behind_attention)
            if family.mlp_out in present:
                settled_input = SettledInput(block, family.mlp_out, family.mlp_in)
            run = partial(stream.through_layer, position, block)
            steps = steps_of(family, block, partial(run, range(1)))
        else:
            widen_small_parts(block, self.skeleton)
            steps = (((self.skeleton.head_path,),),)
            run = partial(stream.through_rest, self.skeleton, block)
        batches = stream.batches(range(self._n_fitted()))
        return LayerInputs(block, steps, run, batches, settled=settled, settled_input=settled_input)

    def _n_fitted(self) -> int:
        """Samples that stages may look at; those behind them in the stream are for measuring."""
        return 0 if self.samples is None else len(self.samples.rows)

    def _measure_divergence(self, stream: CalibrationStream, block: nn.Module) -> None:
        """Compare with the source on the samples that stages did not see."""
        if self.unseen is None or not isinstance(block, PreTrainedModel):
            return
        positions = range(self._n_fitted(), len(stream.hidden))
        source = blocked_source(self.skeleton, self.checkpoint)
        wanted = final_states(source, self.unseen)
        self.divergence = mean_divergence(
            Head(source.rest(), self.skeleton), wanted,
            Head(block, self.skeleton), stream.at_head(self.skeleton, block, positions),
        )  # fmt: skip

    def _save(self, number: int, position: int, stream: CalibrationStream | None) -> None:
        """Store where the run stands after a block."""
        if stream is None and len(self.stages) == 1:
            return  # quick to repeat, and nothing but the shards is at stake
        if self.probe is not None and position == self.skeleton.n_layers:
            return  # whoever goes on from here must still write the probe down
        tensors = {} if stream is None else {"hidden": torch.cat(stream.hidden)}
        if self.probe is not None:
            tensors["probe"] = self.probe.stream.hidden[0]
        stages: dict[str, Any] = {}
        for stage in self.stages:
            state = stage.state()
            stages[stage.name] = state.values
            tensors |= {f"{stage.name}/{name}": part for name, part in state.tensors.items()}
        count = number * (self.skeleton.n_layers + 1) + position + 1
        values = {
            "done": count,
            "reports": [asdict(report) for report in self.reports],
            "stages": stages,
            "writer": self.writer.state(),
            "spool": self.block_cache.state(),
            "head_shares_codes": self.head_shares_codes,
            "excess": self.kl_inflation,  # as states have called it since the first version
            "divergence": self.divergence,
        }
        self.states.save(count, values, tensors)

    def _take_up(self, found: RunState) -> tuple[int, int]:
        """Restore what `_save` stored; return the pass and block to go on with."""
        values = found.values
        self.reports += [ModuleReport(**report) for report in values["reports"]]
        for stage in self.stages:
            prefix = f"{stage.name}/"
            own = {
                name.removeprefix(prefix): part
                for name, part in found.tensors.items()
                if name.startswith(prefix)
            }
            stage.restore(StageState(values["stages"][stage.name], own))
        self.writer.restore(values["writer"])
        self.block_cache.recall(values["spool"])
        self.head_shares_codes = values["head_shares_codes"]
        self.divergence = values["divergence"]
        done: int = values["done"]
        return divmod(done, self.skeleton.n_layers + 1)

    def _student(self) -> BlockedModel:
        """The model as it is between two passes."""

        def rest() -> PreTrainedModel:
            found = self._load(self.skeleton.n_layers, NON_LAYER)
            assert isinstance(found, PreTrainedModel)  # noqa: S101 - the outermost block
            return found

        def layer(index: int) -> nn.Module:
            return self._load(index, self.skeleton.layer_path(index))

        return BlockedModel(self.skeleton, layer, rest)

    def _paths(self) -> list[str]:
        return [*(self.skeleton.layer_path(i) for i in range(self.skeleton.n_layers)), NON_LAYER]

    def _load(self, position: int, path: str) -> nn.Module:
        if self.block_cache.holds(path):
            block = self.block_cache.restore(
                path, self._original(position, path), self.checkpoint.dtype
            )
            return block.to(self.checkpoint.device)
        if path == NON_LAYER:
            rest: nn.Module = load_rest(self.skeleton, self.checkpoint)
            return rest
        return load_layer(self.skeleton, self.checkpoint, position)

    def _original(self, position: int, path: str) -> nn.Module:
        return (
            self.skeleton.empty_rest() if path == NON_LAYER else self.skeleton.empty_layer(position)
        )

    def _stream_for(self, one: Pass) -> CalibrationStream | None:
        if self.samples is None or not one.needs_samples:
            return None
        rows = self.samples.rows
        if self.unseen is not None:
            rows = torch.cat([rows, self.unseen])
        return begin_stream(self.skeleton, load_rest(self.skeleton, self.checkpoint), rows)

    def _note_tying(self, path: str, block: nn.Module) -> None:
        if path == NON_LAYER:
            head = block.get_submodule(self.skeleton.head_path)
            embedding = block.get_submodule(self.skeleton.embedding_path)
            self.head_shares_codes = shares_matrix(head, embedding)


def _routing(path: str, family: Family, inputs: LayerInputs | None) -> list[ModuleReport]:
    """How the samples were shared out among a layer's experts, as far as was looked at."""
    routed = {} if inputs is None else inputs.routed
    reports = []
    for experts in family.experts:
        tokens = [
            count
            for name, count in routed.items()
            if name.startswith(f"{experts}.") and name.endswith("down_proj")
        ]
        if tokens:
            figures: dict[str, float | int | str] = {
                "experts": len(tokens), "unseen": tokens.count(0), "fewest_tokens": min(tokens), "tokens": sum(tokens),
            }  # fmt: skip
            where = f"{path}.{experts}"
            reports.append(
                ModuleReport(layer=where, stage="calibration", applied=True, figures=figures)
            )
    return reports

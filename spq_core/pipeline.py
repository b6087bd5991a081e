"""Compress a model folder: stages applied layer by layer, one decoder layer in memory at a time.

A pass walks over all blocks (decoder layers in order, then the rest of the model). A stage whose
choice depends on the whole model needs a pass of its own to look before it changes anything, so a
recipe is cut into passes at such stages; between passes, changed blocks lie on disk. The last pass
writes each finished block as a final shard.
"""

import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import nn

from spq_core.allocation.budget import Budget
from spq_core.artifact.format import CLASS_PREFIX, FORMAT_VERSION, METHOD
from spq_core.artifact.manifest import MANIFEST_FILE, Manifest, Source
from spq_core.artifact.spool import Spool
from spq_core.artifact.write import ArtifactWriter
from spq_core.calibration.inputs import LayerInputs
from spq_core.calibration.samples import CalibrationSamples, calibration_samples
from spq_core.calibration.stream import CalibrationStream, begin_stream, widen_small_parts
from spq_core.calibration.texts import Text
from spq_core.errors import RecipeError
from spq_core.families.architectures import ARTIFACT_PREFIX
from spq_core.layers.layout import CodedLayout, Int8Layout, Layout, PackedLayout
from spq_core.memory import peak_rss_bytes, reset_peak_rss
from spq_core.model_files import check_model_folder
from spq_core.modeling.blocks import load_layer, load_rest
from spq_core.modeling.checkpoint import Checkpoint, open_checkpoint
from spq_core.modeling.skeleton import Skeleton, load_skeleton
from spq_core.progress import Progress, Silent
from spq_core.pruning.stage import PruneStage, forget
from spq_core.quantization.grid_stage import GridStage
from spq_core.quantization.plan import plan_budget
from spq_core.quantization.rate_stage import RateStage
from spq_core.quantization.stage import QuantizeStage
from spq_core.recipe import PruneStage as PruneSettings
from spq_core.recipe import QuantizeStage as QuantizeSettings
from spq_core.recipe import Recipe
from spq_core.recipe import SvdStage as SvdSettings
from spq_core.report import CompressionReport, ModuleReport
from spq_core.stage import Stage
from spq_core.svd.stage import SvdStage
from spq_core.weight_files import stored_bytes

ARTIFACT_EXTRA_FILES = ("config.json", MANIFEST_FILE)
REST = ""
"""Path of the block that holds everything outside the decoder layers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceModel:
    """A local folder and where it came from."""

    folder: Path
    name: str
    revision: str | None = None


@dataclass(frozen=True, slots=True)
class Pass:
    """One walk over all blocks."""

    apply: tuple[Stage, ...]
    survey: Stage | None
    """Looks at the blocks after `apply`; None in the last pass, which writes them."""


def plan_passes(stages: Sequence[Stage]) -> tuple[Pass, ...]:
    """Cut stages into passes: each stage that needs a survey ends the pass before it."""
    passes: list[Pass] = []
    pending: list[Stage] = []
    for stage in stages:
        if stage.needs_survey:
            passes.append(Pass(tuple(pending), stage))
            pending = []
        pending.append(stage)
    return (*passes, Pass(tuple(pending), None))


def build_stages(
    recipe: Recipe, skeleton: Skeleton, checkpoint: Checkpoint, budget: Budget | None = None
) -> tuple[Stage, ...]:
    """Make the recipe's stages for one model."""
    return tuple(_build_stage(settings, skeleton, checkpoint, budget) for settings in recipe.stages)


def _build_stage(
    settings: SvdSettings | PruneSettings | QuantizeSettings,
    skeleton: Skeleton,
    checkpoint: Checkpoint,
    budget: Budget | None,
) -> Stage:
    if isinstance(settings, SvdSettings):
        return SvdStage(settings, skeleton.family)
    if isinstance(settings, PruneSettings):
        return PruneStage(settings, skeleton.family, forget if budget is None else budget.keep_rows)
    parts = (
        settings,
        skeleton.family,
        skeleton.head_path,
        skeleton.embedding_path,
        checkpoint.dtype,
    )
    if budget is not None:
        return RateStage(*parts, budget)
    return QuantizeStage(*parts) if settings.is_plain else GridStage(*parts)


def compress(
    source: SourceModel,
    recipe: Recipe,
    out: Path,
    *,
    text: Text | None = None,
    progress: Progress | None = None,
) -> CompressionReport:
    """Compress the model in `source.folder` into the new folder `out`.

    Args:
        text: where calibration samples come from; needed by recipes with a calibrated stage.
        progress: told about each block; may raise to stop the run, which then leaves no folder.

    Raises:
        SpqError: the recipe, the model or the text cannot be used; `out` does not exist then.
    """
    started = time.monotonic()
    reset_peak_rss()
    check_model_folder(source.folder)
    checkpoint = open_checkpoint(source.folder)
    skeleton = load_skeleton(source.folder)
    progress = progress or Silent()
    samples = _samples_for(recipe, source, text)
    scratch = out.with_name(f"{out.name}.spool")
    budget = _plan(recipe, source, skeleton, checkpoint, samples, scratch, progress)
    stages = build_stages(recipe, skeleton, checkpoint, budget)
    run = _Run(source, checkpoint, skeleton, stages, samples, progress)
    writer = ArtifactWriter(out, skeleton.n_layers + 1, checkpoint.dtype)
    with writer:
        modules = run.all_passes(writer)
        writer.write_index()
        writer.write_config(_artifact_config(skeleton, writer, run.head_shares_codes))
        writer.carry_files(source.folder)
        writer.finish(_manifest(run, recipe, modules))
    return CompressionReport(
        recipe=recipe.document(),
        recipe_sha256=recipe.sha256(),
        family=skeleton.family.name,
        source_dtype=_dtype_name(checkpoint),
        source_bytes=stored_bytes(source.folder),
        artifact_bytes=stored_bytes(out, ARTIFACT_EXTRA_FILES),
        parameters=checkpoint.parameters,
        seconds=time.monotonic() - started,
        peak_rss_bytes=peak_rss_bytes(),
        calibration=None if samples is None else samples.description,
        modules=tuple(modules),
    )


@dataclass(slots=True)
class _Run:
    """State of one compression while its passes run."""

    source: SourceModel
    checkpoint: Checkpoint
    skeleton: Skeleton
    stages: tuple[Stage, ...]
    samples: CalibrationSamples | None
    progress: Progress
    head_shares_codes: bool = False

    def all_passes(self, writer: ArtifactWriter) -> list[ModuleReport]:
        """Walk all passes and return what the stages report, in order."""
        passes = plan_passes(self.stages)
        reports: list[ModuleReport] = []
        spool = Spool(writer.folder.with_name(f"{writer.folder.name}.spool"))
        try:
            for number, one in enumerate(passes, start=1):
                names = "+".join(stage.name for stage in one.apply) or "look"
                total = self.skeleton.n_layers + 1
                self.progress.stage(f"{names} (pass {number}/{len(passes)})", total, "blocks")
                reports += self._one_pass(one, spool, writer)
        finally:
            shutil.rmtree(spool.folder, ignore_errors=True)
        return reports

    def _one_pass(self, one: Pass, spool: Spool, writer: ArtifactWriter) -> Iterator[ModuleReport]:
        stream = self._stream_for(one)
        for number, path in enumerate(self._paths()):
            block = self._load(number, path, spool)
            inputs = self._inputs(stream, one, number, block)
            for stage in one.apply:
                for report in stage.apply(path, block, inputs):
                    self.progress.record("layer", asdict(report))
                    yield report
            if one.survey is not None:
                one.survey.survey(path, block, lambda: _advance(stream, number, block))  # noqa: B023
                if one.apply:
                    spool.keep(path, block, self._original(number, path))
            else:
                if path != REST:
                    _advance(stream, number, block)
                self._note_tying(path, block)
                writer.write_block(number + 1, path, block, self._original(number, path))
            self.progress.advance(path or "embedding and head")

    def _inputs(
        self, stream: CalibrationStream | None, one: Pass, number: int, block: nn.Module
    ) -> LayerInputs | None:
        """What the stages of a pass may ask about a block."""
        if stream is None or not any(stage.needs_inputs for stage in one.apply):
            return None
        if number < self.skeleton.n_layers:
            return LayerInputs(
                block,
                self.skeleton.family.shared_inputs,
                partial(stream.through_layer, number, block),
                len(stream.hidden),
            )
        widen_small_parts(block, self.skeleton)
        return LayerInputs(
            block,
            ((self.skeleton.head_path,),),
            partial(stream.through_rest, self.skeleton, block),
            len(stream.hidden),
        )

    def _paths(self) -> list[str]:
        return [*(self.skeleton.layer_path(i) for i in range(self.skeleton.n_layers)), REST]

    def _load(self, number: int, path: str, spool: Spool) -> nn.Module:
        if spool.holds(path):
            return spool.restore(path, self._original(number, path), self.checkpoint.dtype)
        if path == REST:
            rest: nn.Module = load_rest(self.skeleton, self.checkpoint)
            return rest
        return load_layer(self.skeleton, self.checkpoint, number)

    def _original(self, number: int, path: str) -> nn.Module:
        return self.skeleton.empty_rest() if path == REST else self.skeleton.empty_layer(number)

    def _stream_for(self, one: Pass) -> CalibrationStream | None:
        surveyed = one.survey is not None and one.survey.needs_calibration
        asked = any(stage.needs_inputs for stage in one.apply)
        if self.samples is None or not (surveyed or asked):
            return None
        return begin_stream(self.skeleton, self.checkpoint, self.samples.windows)

    def _note_tying(self, path: str, block: nn.Module) -> None:
        if path == REST:
            head = block.get_submodule(self.skeleton.head_path)
            embedding = block.get_submodule(self.skeleton.embedding_path)
            shared = ("codes", "packed", "weight")
            name = next(part for part in shared if hasattr(head, part))
            self.head_shares_codes = getattr(head, name) is getattr(embedding, name, None)


def _advance(stream: CalibrationStream | None, number: int, block: nn.Module) -> None:
    if stream is not None:
        stream.advance(number, block)


def _samples_for(
    recipe: Recipe, source: SourceModel, text: Text | None
) -> CalibrationSamples | None:
    if not recipe.needs_calibration:
        return None
    if text is None:
        raise RecipeError(
            f"the recipe needs calibration text {recipe.calibration.dataset!r}; none was given"
        )
    return calibration_samples(recipe.calibration, text, source.folder)


def _plan(
    recipe: Recipe,
    source: SourceModel,
    skeleton: Skeleton,
    checkpoint: Checkpoint,
    samples: CalibrationSamples | None,
    scratch: Path,
    progress: Progress,
) -> Budget | None:
    """Share out the target's bytes, if the recipe has one."""
    target = recipe.target
    quantize = next((one for one in recipe.stages if isinstance(one, QuantizeSettings)), None)
    if target is None or quantize is None or samples is None or target.bytes_ratio is None:
        return None
    try:
        return plan_budget(
            skeleton, checkpoint, samples.windows, quantize,
            allocation=target.allocation,
            artifact_bytes=target.bytes_ratio * stored_bytes(source.folder),
            scratch=scratch, progress=progress,
        )  # fmt: skip
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _artifact_config(skeleton: Skeleton, writer: ArtifactWriter, shares: bool) -> dict[str, Any]:  # noqa: FBT001
    """The source's config.json with our model type and the layouts of the changed modules."""
    config: dict[str, Any] = skeleton.config.to_dict()
    for key in ("_name_or_path", "transformers_version"):
        config.pop(key, None)
    tied = {}
    if shares and skeleton.head_path in writer.layouts:
        names = tied_parts(writer.layouts[skeleton.head_path])
        tied = {
            f"{skeleton.head_path}.{part}": f"{skeleton.embedding_path}.{part}" for part in names
        }
    return config | {
        "model_type": f"{ARTIFACT_PREFIX}{skeleton.config.model_type}",
        "architectures": [f"{CLASS_PREFIX}{type(skeleton.model).__name__}"],
        "tie_word_embeddings": shares,
        "dtype": str(writer.dtype).removeprefix("torch."),
        "quantization_config": {
            "quant_method": METHOD,
            "format_version": FORMAT_VERSION,
            "modules": {name: layout.model_dump() for name, layout in writer.layouts.items()},
            "tied": tied,
        },
    }


def _manifest(run: _Run, recipe: Recipe, modules: Sequence[ModuleReport]) -> Manifest:
    return Manifest(
        source=Source(
            name=run.source.name,
            revision=run.source.revision,
            dtype=_dtype_name(run.checkpoint),
            bytes=stored_bytes(run.source.folder),
            parameters=run.checkpoint.parameters,
        ),
        family=run.skeleton.family.name,
        recipe=recipe.document(),
        recipe_sha256=recipe.sha256(),
        calibration=None if run.samples is None else run.samples.description,
        modules=[asdict(report) for report in modules],
        versions={name: version(name) for name in ("spq", "torch", "transformers", "safetensors")},
        files={},
    )


def tied_parts(layout: Layout) -> tuple[str, ...]:
    """Names of the tensors that a tied head takes over from its embedding."""
    match layout:
        case Int8Layout():
            return ("codes", "scale")
        case PackedLayout():
            return ("packed", "scale", "zero")
        case CodedLayout():
            return ("packed",)
        case _:
            return ("weight",)


def _dtype_name(checkpoint: Checkpoint) -> str:
    return str(checkpoint.dtype).removeprefix("torch.")

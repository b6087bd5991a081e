"""Compress a model folder into an artifact folder."""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor

from spq_core.allocation.budget import empty_budget
from spq_core.artifact.format import CLASS_PREFIX, FORMAT_VERSION, METHOD
from spq_core.artifact.manifest import MANIFEST_FILE, Manifest, Source, file_sha256
from spq_core.artifact.spool import Spool
from spq_core.artifact.write import ArtifactWriter
from spq_core.calibration.samples import CalibrationSamples, calibration_samples
from spq_core.calibration.texts import Text
from spq_core.errors import RecipeError
from spq_core.families.architectures import ARTIFACT_PREFIX
from spq_core.layers.layout import CodedLayout, Int8Layout, Layout, PackedLayout
from spq_core.memory import peak_rss_bytes, reset_peak_rss
from spq_core.model_files import check_model_folder
from spq_core.modeling.blocked import BlockedModel
from spq_core.modeling.blocks import load_layer, load_rest
from spq_core.modeling.checkpoint import Checkpoint, open_checkpoint
from spq_core.modeling.skeleton import Skeleton, load_skeleton
from spq_core.passes import Run
from spq_core.plan import Plan, make_plan
from spq_core.progress import Progress, Silent
from spq_core.pruning.head_stage import PruneHeadsStage
from spq_core.pruning.stage import PruneStage
from spq_core.quantization.grid_stage import GridStage
from spq_core.quantization.rate_stage import RateStage
from spq_core.quantization.stage import QuantizeStage
from spq_core.recipe import PruneHeadsStage as PruneHeadsSettings
from spq_core.recipe import PruneStage as PruneSettings
from spq_core.recipe import QuantizeStage as QuantizeSettings
from spq_core.recipe import Recipe
from spq_core.recipe import RecoverStage as RecoverSettings
from spq_core.recipe import SvdStage as SvdSettings
from spq_core.recovery.samples import RecoverySamples, recovery_samples
from spq_core.recovery.stage import RecoverStage
from spq_core.report import CompressionReport, ModuleReport
from spq_core.resume import RunState, StateFolder
from spq_core.stage import Stage
from spq_core.survey import rate_settings
from spq_core.svd.stage import SvdStage
from spq_core.weight_files import stored_bytes

ARTIFACT_EXTRA_FILES = ("config.json", MANIFEST_FILE)


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceModel:
    """A local folder and where it came from."""

    folder: Path
    name: str
    revision: str | None = None


def build_stages(
    recipe: Recipe,
    skeleton: Skeleton,
    checkpoint: Checkpoint,
    plan: Plan,
    recovery: RecoverySamples | None,
    progress: Progress,
) -> tuple[Stage, ...]:
    """Make the recipe's stages for one model."""
    listeners: list[Callable[[str, Tensor], None]] = []

    def on_cut(name: str, kept: Tensor) -> None:
        for listener in listeners:
            listener(name, kept)

    if plan.budget is not None:
        listeners.append(plan.budget.keep_rows)
    stages: list[Stage] = []
    for settings in recipe.stages:
        if isinstance(settings, RecoverSettings):
            if recovery is None:
                raise RecipeError("a recipe with a recover stage needs text; none was given")
            teacher = BlockedModel(
                skeleton,
                partial(load_layer, skeleton, checkpoint),
                partial(load_rest, skeleton, checkpoint),
            )
            stages.append(RecoverStage(settings, recovery, teacher, progress))
            continue
        stage = _build_stage(settings, skeleton, checkpoint, plan, on_cut)
        if isinstance(stage, SvdStage):
            listeners.append(stage.keep_rows)
        stages.append(stage)
    return tuple(stages)


def _build_stage(
    settings: SvdSettings | PruneSettings | PruneHeadsSettings | QuantizeSettings,
    skeleton: Skeleton,
    checkpoint: Checkpoint,
    plan: Plan,
    on_cut: Callable[[str, Tensor], None],
) -> Stage:
    family, structure = skeleton.family, plan.structure
    match settings:
        case SvdSettings():
            weights = plan.weights_of(family.attention) if settings.objective == "loss" else {}
            return SvdStage(settings, family, dict(structure.ranks), weights)
        case PruneSettings():
            weights = plan.weights_of((family.mlp_out,))
            return PruneStage(settings, family, on_cut, dict(structure.neurons), weights)
        case PruneHeadsSettings():
            weights = plan.weights_of(family.attention[-1:])
            return PruneHeadsStage(settings, family, dict(structure.heads), weights, on_cut)
        case QuantizeSettings():
            parts = (
                settings, family, skeleton.head_path, skeleton.embedding_path, checkpoint.dtype,
            )  # fmt: skip
            if plan.budget is not None:
                return RateStage(*parts, plan.budget)
            return QuantizeStage(*parts) if settings.is_plain else GridStage(*parts)


def compress(
    source: SourceModel,
    recipe: Recipe,
    out: Path,
    *,
    text: Text | None = None,
    progress: Progress | None = None,
    resume: bool = False,
) -> CompressionReport:
    """Compress the model in `source.folder` into the new folder `out`.

    Args:
        text: where calibration samples come from; needed by recipes with a calibrated stage.
        progress: told about each block; may raise to stop the run, which then leaves no folder.
        resume: go on where an earlier run of the same compression was killed, if one was.

    Raises:
        ArtifactError: `resume` finds the state of a different compression.
        SpqError: the recipe, the model or the text cannot be used; `out` does not exist then.
    """
    started = time.monotonic()
    reset_peak_rss()
    check_model_folder(source.folder)
    checkpoint = open_checkpoint(source.folder)
    skeleton = load_skeleton(source.folder)
    progress = progress or Silent()
    samples = _samples_for(recipe, source, text)
    recovery = _recovery(recipe, source, text)
    states = StateFolder(
        out.with_name(f"{out.name}.state"),
        _fingerprint(recipe, source, checkpoint, _rows(samples, recovery)),
    )
    found = states.load() if resume else None
    scratch = out.with_name(f"{out.name}.spool")
    if found is None:  # what another run left must not be taken for this one's
        states.remove()
        shutil.rmtree(scratch, ignore_errors=True)
    with _cleaned_up(scratch, states):
        plan = _plan(recipe, source, skeleton, checkpoint, samples, scratch, progress, found)
        stages = build_stages(recipe, skeleton, checkpoint, plan, recovery, progress)
        writer = ArtifactWriter(
            out, skeleton.n_layers + 1, checkpoint.dtype, resumed=found is not None
        )
        run = Run(checkpoint, skeleton, stages, samples, progress, writer, Spool(scratch), states)
        with writer:
            modules = run.all_passes(found)
            writer.write_index()
            writer.write_config(_artifact_config(skeleton, writer, run.head_shares_codes))
            writer.carry_files(source.folder)
            writer.finish(_manifest(source, checkpoint, skeleton, samples, recipe, modules))
        states.remove()
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


def _recovery(recipe: Recipe, source: SourceModel, text: Text | None) -> RecoverySamples | None:
    found = [stage for stage in recipe.stages if isinstance(stage, RecoverSettings)]
    if not found or text is None:
        return None
    return recovery_samples(found[0], text, source.folder)


@contextmanager
def _cleaned_up(scratch: Path, states: StateFolder) -> Iterator[None]:
    """Leave nothing behind after success or an error; what a killed or interrupted run leaves can be resumed."""
    try:
        yield
    except Exception:
        states.remove()
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    shutil.rmtree(scratch, ignore_errors=True)


def _rows(*samples: CalibrationSamples | RecoverySamples | None) -> list[Tensor]:
    """The tokens that a run looks at."""
    return [one.rows for one in samples if one is not None]


def _fingerprint(
    recipe: Recipe, source: SourceModel, checkpoint: Checkpoint, rows: Sequence[Tensor]
) -> str:
    """Digest of everything a result depends on but the number of threads."""
    digest = hashlib.sha256(recipe.sha256().encode())
    for file in sorted({header.file for header in checkpoint.tensors.values()} | {"config.json"}):
        digest.update(f"{file} {file_sha256(source.folder / file)}\n".encode())
    for part in rows:
        digest.update(part.numpy().tobytes())
    digest.update(json.dumps(_versions(), sort_keys=True).encode())
    return digest.hexdigest()


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("spq", "torch", "transformers", "safetensors")}


def _plan(
    recipe: Recipe,
    source: SourceModel,
    skeleton: Skeleton,
    checkpoint: Checkpoint,
    samples: CalibrationSamples | None,
    scratch: Path,
    progress: Progress,
    found: RunState | None,
) -> Plan:
    """Decide what the recipe leaves open; a resumed run has decided already."""
    if not recipe.needs_sensitivity or samples is None:
        return Plan()
    if found is not None:
        return Plan(budget=None if rate_settings(recipe) is None else empty_budget())
    return make_plan(
        recipe, skeleton, checkpoint, samples.rows,
        source_bytes=stored_bytes(source.folder),
        scratch=scratch / "sensitivity", progress=progress,
    )  # fmt: skip


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


def _manifest(
    source: SourceModel,
    checkpoint: Checkpoint,
    skeleton: Skeleton,
    samples: CalibrationSamples | None,
    recipe: Recipe,
    modules: Sequence[ModuleReport],
) -> Manifest:
    return Manifest(
        source=Source(
            name=source.name,
            revision=source.revision,
            dtype=_dtype_name(checkpoint),
            bytes=stored_bytes(source.folder),
            parameters=checkpoint.parameters,
        ),
        family=skeleton.family.name,
        recipe=recipe.document(),
        recipe_sha256=recipe.sha256(),
        calibration=None if samples is None else samples.description,
        modules=[asdict(report) for report in modules],
        versions=_versions(),
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

"""Compress a model folder into an artifact folder."""

import math
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from spq_core.artifact.manifest import MANIFEST_FILE
from spq_core.artifact.same_text import require_same_tokenizer
from spq_core.artifact.writer import ArtifactWriter, require_unused, require_writable
from spq_core.compression.block_cache import BlockCache
from spq_core.compression.decisions import Findings, look, make_plan
from spq_core.compression.kept_findings import findings_name, keep_findings, kept_findings
from spq_core.compression.provenance import dtype_name, fingerprint, manifest_of, weights_digest
from spq_core.compression.run_samples import rows_of, rows_to_train_on, samples_for
from spq_core.compression.theoretical_rate import theoretical_rate
from spq_core.compression.walk import KL_INFLATION, BlockWalk
from spq_core.data.calibration import Layers
from spq_core.data.samples import (
    CalibrationSamples,
    unseen_windows,
)
from spq_core.data.texts import Text, held_out
from spq_core.data.training_rows import TrainingRows
from spq_core.errors import SpqError, TargetUnreachedError
from spq_core.evaluation.known import NO_SHELF, Shelf
from spq_core.formats.layer import Layout
from spq_core.formats.profiles.registry import profile_named
from spq_core.memory import peak_rss_bytes, reset_peak_rss
from spq_core.methods.making import make_stage
from spq_core.methods.stage import Stage, StageContext
from spq_core.models.blocks import blocked_source, open_model
from spq_core.models.checkpoint import Checkpoint
from spq_core.models.clean_copy import SourceModel, clean_copy
from spq_core.models.fit import check_fit
from spq_core.models.skeleton import Skeleton
from spq_core.models.weight_files import sixteen_bit_bytes, stored_bytes
from spq_core.planning.budget import empty_budget
from spq_core.planning.plan import Plan
from spq_core.progress import Phase, PhaseKind, Progress, Silent
from spq_core.recipe.document import Recipe
from spq_core.recipe.suitable import refuse_config, refuse_family
from spq_core.report import CompressionReport, ModuleReport
from spq_core.streaming.run_state import RunState, StateFolder, state_folder

ATTEMPTS = 4
MARGIN = 1.1
"""By how much more than needed an attempt is tightened."""
ARTIFACT_EXTRA_FILES = ("config.json", MANIFEST_FILE)


def compress(
    source: SourceModel,
    recipe: Recipe,
    out: Path,
    *,
    text: Text | None = None,
    progress: Progress | None = None,
    resume: bool = False,
    device: str = "cpu",
    probe_file: Path | None = None,
    shelf: Shelf = NO_SHELF,
) -> CompressionReport:
    """Compress the model in `source.folder` into the new folder `out`.

    Args:
        text: where calibration samples come from; needed by recipes with a calibrated stage.
        progress: told about each block; may raise to stop the run, which then leaves no folder.
        resume: go on where an earlier run of the same compression was killed, if one was.
        device: where layers, samples and decompositions are; `cpu` or a CUDA device.
        probe_file: new file for what the result computes in memory, for `check_loads`.
        shelf: what earlier runs found out about the source, and where to leave what this one does.

    Raises:
        StateMismatchError: `resume` finds the state of a different compression.
        SpqError: the recipe, the model or the text cannot be used; `out` does not exist then.
    """
    with clean_copy(source) as copy:
        return _compressed(
            copy, recipe, out, text=text, progress=progress or Silent(), resume=resume, device=device,
            probe_file=probe_file, shelf=shelf,
        )  # fmt: skip


def _compressed(
    source: SourceModel,
    recipe: Recipe,
    out: Path,
    *,
    text: Text | None,
    progress: Progress,
    resume: bool,
    device: str,
    probe_file: Path | None,
    shelf: Shelf,
) -> CompressionReport:
    """`compress` with a clean copy of the source."""
    started = time.monotonic()
    reset_peak_rss()
    skeleton, checkpoint = open_model(source.folder, device)
    notes = (*source.notes, *check_fit(skeleton, checkpoint, source.name))
    if source.lost_tokenizer_code and source.original is not None:
        require_same_tokenizer(source.folder, source.original, source.name)
    require_unused(out)
    refuse_family(recipe, skeleton.family)
    refuse_config(
        recipe,
        skeleton.text_config.to_dict(),
        has_towers=skeleton.text_config is not skeleton.config,
    )
    require_writable(profile_named(recipe.profile), source.folder, skeleton)
    unseen_text = ""
    if text is not None and recipe.target is not None and recipe.target.max_kl is not None:
        text, unseen_text = held_out(text)
    layers = Layers(skeleton.widest_input, sum(skeleton.matrix_sizes().values()))
    samples = samples_for(recipe, source, text, layers)
    unseen = None
    if unseen_text and samples is not None:
        unseen = unseen_windows(unseen_text, samples.rows.shape[1], source.folder)
    trained = rows_to_train_on(recipe, source, text)
    states = StateFolder(
        state_folder(out),
        fingerprint(recipe, source, checkpoint, rows_of(samples, trained)),
        device,
    )
    compression = _Compression(
        source=source, recipe=recipe, out=out, skeleton=skeleton, checkpoint=checkpoint,
        samples=samples, unseen=unseen, trained=trained, progress=progress, states=states,
        probe_file=probe_file, shelf=shelf,
    )  # fmt: skip
    made = compression.run(states.load() if resume else None, resume=resume)
    quantize = recipe.quantize
    return CompressionReport(
        recipe=recipe.document(),
        recipe_sha256=recipe.sha256(),
        family=skeleton.family.name,
        source_dtype=dtype_name(checkpoint),
        source_bytes=stored_bytes(source.folder),
        artifact_bytes=stored_bytes(out, ARTIFACT_EXTRA_FILES),
        parameters=checkpoint.parameters,
        seconds=time.monotonic() - started,
        peak_rss_bytes=peak_rss_bytes(),
        calibration=None if samples is None else samples.description,
        modules=tuple(made.modules),
        theoretical_rate=theoretical_rate(
            skeleton.matrix_sizes(), made.layouts, 0.0 if quantize is None else quantize.sparsity
        ),
        notes=notes,
    )


class _Made(NamedTuple):
    """A finished artifact."""

    modules: list[ModuleReport]
    layouts: Mapping[str, Layout]


class _TooFarError(SpqError):
    """An attempt ended further from the source than the target allows."""

    def __init__(self, divergence: float) -> None:
        super().__init__(divergence)
        self.divergence = divergence


@dataclass(frozen=True, slots=True, kw_only=True)
class _Compression:
    """One call of `compress`, once its inputs are checked."""

    source: SourceModel
    recipe: Recipe
    out: Path
    skeleton: Skeleton
    checkpoint: Checkpoint
    samples: CalibrationSamples | None
    unseen: Tensor | None
    """Token windows to measure `max_kl` on."""
    trained: Mapping[str, TrainingRows]
    """By type of stage."""
    progress: Progress
    states: StateFolder
    probe_file: Path | None
    shelf: Shelf

    @property
    def scratch(self) -> Path:
        """Where changed blocks and hidden states wait."""
        return self.out.with_name(f"{self.out.name}.spool")

    @property
    def stored_dtype(self) -> torch.dtype:
        """Of what the artifact has in floating point."""
        dtype = self.checkpoint.dtype
        wide = dtype.itemsize > torch.bfloat16.itemsize and self.recipe.floats == "16-bit"
        return torch.bfloat16 if wide else dtype

    @property
    def max_kl(self) -> float | None:
        """How far from the source the result may be, if the recipe says so."""
        return None if self.recipe.target is None else self.recipe.target.max_kl

    def run(self, found: RunState | None, *, resume: bool) -> _Made:
        """Compress, if need be again with more bytes, until a `max_kl` is kept.

        Leaves nothing behind after success, or after an error that would happen again; what a run leaves that was
        killed or interrupted, or that its machine let down, can be resumed.
        """
        kl_inflation = KL_INFLATION if found is None else float(found.values["excess"])
        if found is None:  # what another run left must not be taken for this one's
            shutil.rmtree(self.scratch, ignore_errors=True)
            if not resume:  # a training that was killed may have left its own state
                self.states.remove()
        try:
            made = self._first_close_enough(kl_inflation, found)
        except SpqError:  # others are of the machine, or bugs: what is done so far is worth keeping
            self._forget()
            raise
        self._forget()
        return made

    def _first_close_enough(self, kl_inflation: float, found: RunState | None) -> _Made:
        spent, reached = 0.0, math.inf
        found_out: Findings | None = None
        for _ in range(ATTEMPTS):
            if found is None:
                found_out = found_out or self._look()
            plan = self._plan(kl_inflation, found, found_out)
            if found is None and plan.budget is not None:
                if plan.budget.wanted_bytes <= spent:
                    break  # the finest lattices were tried
                spent = plan.budget.wanted_bytes
            try:
                return self._attempt(plan, kl_inflation, found)
            except _TooFarError as too_far:
                last, found = too_far.divergence, None
                reached = min(reached, last)
                title = f"KL {last:.3g} is above {self.max_kl:g}: again with more bytes"
                self.progress.begin(Phase(PhaseKind.OTHER, "again", title), 1, "attempt")
                kl_inflation *= MARGIN * last / (self.max_kl or 1.0)
                self._forget()
        raise TargetUnreachedError(self.max_kl or 0.0, reached)

    def _forget(self) -> None:
        self.states.remove()
        shutil.rmtree(self.scratch, ignore_errors=True)

    def _attempt(self, plan: Plan, kl_inflation: float, found: RunState | None) -> _Made:
        """Walk all passes and finish the artifact.

        Raises:
            _TooFarError: the result is further from the source than `max_kl`.
        """
        writer = self._writer(found)
        run = BlockWalk(
            self.checkpoint, self.skeleton, self._stages(plan), self.samples, self.progress,
            writer, BlockCache(self.scratch), self.states,
            unseen=self.unseen, kl_inflation=kl_inflation, probe_file=self.probe_file,
        )  # fmt: skip
        with writer:
            modules = run.all_passes(found)
            if self.max_kl is not None and run.divergence is not None:
                if not run.divergence <= self.max_kl:
                    raise _TooFarError(run.divergence)
                figures: dict[str, float | int | str] = {
                    "kl": run.divergence,
                    "max_kl": self.max_kl,
                }
                modules.append(
                    ModuleReport(layer="model", stage="target", applied=True, figures=figures)
                )
            writer.write_index()
            changes = self.recipe.changed_config(self.skeleton.text_config.to_dict())
            writer.write_config(
                self.skeleton, head_shares_codes=run.head_shares_codes, changes=changes
            )
            writer.carry_files(self.source.folder)
            writer.finish(
                manifest_of(
                    self.source, self.checkpoint, self.skeleton, self.samples, self.recipe, modules
                )
            )
        return _Made(modules, writer.layouts)

    def _writer(self, found: RunState | None) -> ArtifactWriter:
        return ArtifactWriter(
            self.out, self.skeleton.n_layers + 1, self.stored_dtype,
            profile=profile_named(self.recipe.profile), resumed=found is not None, foreign=self.skeleton.is_foreign,
        )  # fmt: skip

    def _look(self) -> Findings | None:
        """Walk over the source once, for all attempts, if anything is decided by what it costs."""
        if not self.recipe.needs_sensitivity or self.samples is None:
            return None
        device = self.checkpoint.device
        name = findings_name(self.recipe, self.samples.rows, device)
        source = weights_digest(self.source.folder)
        # A model at all widths is too large to keep.
        shelf = NO_SHELF if self.recipe.tries_models else self.shelf
        kept = kept_findings(shelf, source, name, self.skeleton, self.recipe, device)
        if kept is not None:
            return kept
        found = look(
            self.recipe, self.skeleton, self.checkpoint, self.samples.rows,
            self.scratch / "sensitivity", self.progress, item_bytes=self.stored_dtype.itemsize,
        )  # fmt: skip
        keep_findings(found, shelf, source, name)
        return found

    def _plan(self, kl_inflation: float, found: RunState | None, findings: Findings | None) -> Plan:
        """Decide what the recipe leaves open; a resumed run has decided already."""
        if found is not None and self.recipe.needs_sensitivity:
            return Plan(budget=empty_budget() if self.recipe.by_entropy else None)
        if findings is None:
            return Plan()
        return make_plan(
            findings,
            self.checkpoint,
            self.stored_dtype,
            kl_inflation=kl_inflation,
            progress=self.progress,
            source_bytes=sixteen_bit_bytes(
                self.checkpoint.tensors.values(), stored_bytes(self.source.folder)
            ),
        )

    def _stages(self, plan: Plan) -> tuple[Stage, ...]:
        context = StageContext(
            skeleton=self.skeleton,
            dtype=self.stored_dtype,
            plan=plan,
            profile=profile_named(self.recipe.profile),
            training_rows=self.trained,
            source=blocked_source(self.skeleton, self.checkpoint),
            progress=self.progress,
        )
        return tuple(make_stage(settings, context) for settings in self.recipe.stages)

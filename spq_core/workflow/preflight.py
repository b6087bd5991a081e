"""The whole way of a recipe on a two-layer toy of the same architecture, before hours go into it.

The toy has the source's configuration with small sizes, random weights, and the source's tokenizer. What
breaks here (a stage on this architecture, the export, the loader) would break at the end of the run.
"""

import shutil
from dataclasses import replace
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from spq_core.artifact.gguf_file import gguf_file
from spq_core.artifact.load_check import compare
from spq_core.compression.compress import compress
from spq_core.data.texts import Text
from spq_core.errors import SpqError
from spq_core.evaluation.settings import Gates
from spq_core.machine import machine_failure
from spq_core.methods.settings import Toy
from spq_core.models.clean_copy import SourceModel
from spq_core.models.model_folder import side_files
from spq_core.planning.target import Target
from spq_core.progress import PhaseKind, Progress, phase
from spq_core.recipe.document import Recipe
from spq_core.workflow.blocked_load_check import compare as compare_blocked
from spq_core.workflow.load_gate import judged
from spq_core.workflow.toy import GROUP, HEAD_DIM, toy_config

SAMPLES = 2
TOKENS = 32
CHARACTERS = 200_000
"""Of calibration text: enough for the toy's samples, and quick to encode."""
BYTES_RATIO = 0.5
"""Targets are the real model's business; with codes stored by entropy this one is in reach of any."""


class PreflightError(SpqError):
    """The recipe does not work on this architecture."""

    code = "preflight_failed"


def preflight(
    source: SourceModel, recipe: Recipe, text: Text | None, scratch: Path, progress: Progress
) -> None:
    """Compress, export, load, compare and generate, in seconds.

    Args:
        scratch: an existing folder; nothing is left in it.

    Raises:
        PreflightError, LoadGateError: saying what broke.
        SpqError: the recipe, the model or the text cannot be used.
    """
    progress.begin(phase(PhaseKind.PREFLIGHT), 1, "toy")
    folder = scratch / "preflight"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        toy = SourceModel(folder=folder / source.folder.name, name=source.name)
        reason = _write_toy(source.folder, toy.folder)
        if reason:
            progress.advance(f"skipped: no toy of this configuration can be made: {reason}")
            return
        _run(toy, recipe, text, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    progress.advance("a two-layer toy was compressed, loaded, compared, and generated")


def _run(toy: SourceModel, recipe: Recipe, text: Text | None, folder: Path) -> None:
    some = text and replace(
        text,
        calibration=text.calibration[:CHARACTERS],
        evaluation=text.evaluation[:CHARACTERS],
        mixed=(),
    )
    try:
        out, probe = folder / "out", folder / "probe.safetensors"
        compress(toy, small_recipe(recipe), out, text=some, probe_file=probe)
        with torch.no_grad():
            # A GGUF file has no loader in transformers that knows all of its types.
            loaded = compare if gguf_file(out) is None else compare_blocked
            judged(loaded(out, probe, toy.folder))
    except (SpqError, OSError, MemoryError, ImportError):
        raise  # of the model or the machine, and says so
    except Exception as error:
        if machine_failure(error) is not None:
            raise
        raise PreflightError(
            "the recipe does not work on a two-layer toy of this architecture: "
            f"{type(error).__name__}: {error}"[:500]
        ) from error


def small_recipe(recipe: Recipe) -> Recipe:
    """The recipe with few samples and few steps, and with an easy target or fixed amounts."""
    target = None
    if recipe.target is not None and recipe.by_entropy:
        target = Target(bytes_ratio=BYTES_RATIO, allocation=recipe.target.allocation)
    calibration = recipe.calibration.model_copy(update={"samples": SAMPLES, "length": TOKENS})
    toy = Toy(tokens=TOKENS, rank=HEAD_DIM, group=GROUP)
    stages = tuple(stage.for_preflight(toy, fixed=target is None) for stage in recipe.stages)
    changes = {"target": target, "calibration": calibration, "stages": stages, "gates": Gates()}
    return recipe.model_copy(update=changes)


def _write_toy(source: Path, target: Path) -> str:
    """Write the toy; return why it cannot be made, if so."""
    try:
        config = toy_config(
            AutoConfig.from_pretrained(source, local_files_only=True, trust_remote_code=False)
        )
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        model.save_pretrained(target)
    except Exception as error:  # noqa: BLE001 - a toy that cannot be made says nothing of the model
        return f"{type(error).__name__}: {error}"[:200]
    for name in side_files(source):
        (target / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(source / name, target / name)
    return ""

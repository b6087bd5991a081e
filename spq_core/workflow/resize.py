"""Another size of an artifact that holds all its directions, without training."""

import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from spq_core.artifact.blocked import open_blocked
from spq_core.artifact.manifest import (
    BESIDE_FOLDER,
    MANIFEST_FILE,
    Manifest,
    beside_file,
    read_manifest,
    verify_files,
)
from spq_core.artifact.writer import ArtifactWriter, require_unused
from spq_core.compression.theoretical_rate import theoretical_rate
from spq_core.errors import ArtifactError, RecipeError
from spq_core.formats.profiles.format import BYTES_PER_MATRIX, FIXED_BYTES
from spq_core.formats.profiles.registry import profile_named
from spq_core.formats.slicing import bias_of, dense_linear, linear_at
from spq_core.memory import peak_rss_bytes, return_freed_memory
from spq_core.methods.spectra.directions import with_adapter
from spq_core.methods.spectra.settings import SpectrumSettings
from spq_core.methods.spectra.sizes import Factored, ranks_within
from spq_core.methods.spectra.stage import pair_of
from spq_core.models.blocked import BlockedModel
from spq_core.models.checkpoint import open_checkpoint
from spq_core.models.model_folder import read_json_object
from spq_core.models.weight_files import stored_bytes
from spq_core.progress import Phase, PhaseKind, Progress
from spq_core.recipe.document import Recipe, parse_recipe
from spq_core.report import CompressionReport, ModuleReport
from spq_core.streaming.reference import begin_reference
from spq_core.workflow.card import write_card
from spq_core.workflow.finished import FinishedRun, probe_path
from spq_core.workflow.load_gate import LoadCheck, check_loads
from spq_core.workflow.result import NOT_YET, unmeasured

COUNTED_FILES = ("config.json", MANIFEST_FILE)
STAGE, SCORES = "spectrum", "scores"


@dataclass(frozen=True, slots=True)
class Resized:
    """What came out."""

    artifact_bytes: int
    """As for any artifact: without the directions."""
    directions_bytes: int
    """Of those, where they were kept."""
    ratio: float
    """Of the artifact's bytes to its source's, with 16 bits a weight."""
    keep: float
    """Share of the projections' parameters."""
    pairs: int
    """Matrices that are pairs."""


def resize(
    artifact: Path,
    bytes_ratio: float,
    out: Path,
    progress: Progress,
    *,
    keeps_directions: bool = True,
) -> Resized:
    """Write the artifact again with the directions that are best at another size.

    What is written is, weight by weight, what the recipe would have given with that `keep`; so going to another size and back changes
    nothing.

    Args:
        artifact: made by a recipe whose `spectrum` stage has `any_size`.
        bytes_ratio: most bytes of the new artifact over the source's, with 16 bits a weight.
        out: new folder.
        keeps_directions: let the new artifact be resized, too; without, it takes less space.

    Raises:
        ArtifactError: it holds no directions, or is damaged.
        RecipeError: the size cannot be reached; with the least and the largest that can.
        LoadGateError: what was written does not load as it was in memory.
    """  # fmt: skip
    started = time.monotonic()
    old = _open(artifact)
    require_unused(out)
    chosen = _choice(old, bytes_ratio)
    recipe = _recipe(old.manifest, chosen.keep)
    modules = _reports(old.manifest, chosen.ranks, old.matrices)
    probe = probe_path(out)
    skeleton = old.model.skeleton
    writer = ArtifactWriter(
        out, skeleton.n_layers + 1, old.dtype, profile=profile_named(old.manifest.profile),
        foreign=skeleton.is_foreign,
    )  # fmt: skip
    try:
        with writer:
            _write_blocks(old, chosen.ranks, writer, probe, progress)
            writer.carry_files(artifact)
            if keeps_directions:
                shutil.copytree(artifact / BESIDE_FOLDER, writer.folder / BESIDE_FOLDER)
            changed = {
                "recipe": recipe.document(),
                "recipe_sha256": recipe.sha256(),
                "modules": [asdict(one) for one in modules],
            }
            writer.finish(old.manifest.model_copy(update=changed))
        check = _checked(out, probe)
    finally:
        probe.unlink(missing_ok=True)
        shutil.rmtree(writer.folder, ignore_errors=True)
    source = old.manifest.source
    report = CompressionReport(
        recipe=recipe.document(),
        recipe_sha256=recipe.sha256(),
        family=old.manifest.family,
        source_dtype=source.dtype,
        source_bytes=source.bytes,
        artifact_bytes=stored_bytes(out, COUNTED_FILES),
        parameters=source.parameters,
        seconds=time.monotonic() - started,
        peak_rss_bytes=peak_rss_bytes(),
        calibration=old.manifest.calibration,
        modules=tuple(modules),
        theoretical_rate=theoretical_rate(skeleton.matrix_sizes(), writer.layouts),
    )
    result = unmeasured(FinishedRun(report=report, load_check=check), NOT_YET)
    write_card(out, source.name, source.revision, None, result.document(), old.manifest.versions)
    return Resized(
        artifact_bytes=report.artifact_bytes,
        directions_bytes=sum(path.stat().st_size for path in out.glob(f"{BESIDE_FOLDER}/*")),
        ratio=report.artifact_bytes / old.source_bytes,
        keep=chosen.keep,
        pairs=sum(one.stage == STAGE and one.applied for one in modules),
    )


@dataclass(frozen=True, slots=True)
class _AnySize:
    """An artifact that holds all its directions."""

    folder: Path
    manifest: Manifest
    settings: SpectrumSettings
    model: BlockedModel
    matrices: Mapping[str, Factored]
    """By name, those that may be pairs."""
    dtype: torch.dtype

    @property
    def source_bytes(self) -> int:
        """With 16 bits a weight at most."""
        source = self.manifest.source
        return 2 * source.parameters if source.dtype == "float32" else source.bytes

    @property
    def other_bytes(self) -> int:
        """Of all that has one size; the same whatever size the artifact has now."""
        sized = {f"{name}{part}.weight" for name in self.matrices for part in ("", ".down", ".up")}
        tensors = open_checkpoint(self.folder).tensors
        others = sum(one.n_bytes for name, one in tensors.items() if name not in sized)
        beside = FIXED_BYTES + 2 * BYTES_PER_MATRIX * len(self.matrices)  # a pair has two
        return others + beside


def _open(folder: Path) -> _AnySize:
    manifest = read_manifest(folder)
    stages = parse_recipe(manifest.recipe).stages
    settings = next((one for one in stages if isinstance(one, SpectrumSettings)), None)
    if settings is None or not settings.any_size or not (folder / BESIDE_FOLDER).is_dir():
        raise ArtifactError(
            f"{folder.name} holds no directions to choose from; make it with a recipe whose spectrum stage "
            "has any_size, such as `acip`, or resize an artifact that still has them"
        )
    verify_files(folder, manifest)
    model = open_blocked(folder)
    if model is None:
        raise ArtifactError(f"{folder.name} is not an artifact that can be read layer by layer")
    matrices = _matrices(folder, model, settings)
    return _AnySize(folder, manifest, settings, model, matrices, open_checkpoint(folder).dtype)


def _checked(out: Path, probe: Path) -> LoadCheck:
    """The load gate; what does not pass it is removed."""
    try:
        return check_loads(out, probe)
    except BaseException:
        shutil.rmtree(out, ignore_errors=True)
        raise


class _Choice(NamedTuple):
    ranks: Mapping[str, int]
    keep: float


def _matrices(folder: Path, model: BlockedModel, settings: SpectrumSettings) -> dict[str, Factored]:
    """Scores and shapes of all matrices, without reading their directions."""
    found: dict[str, Factored] = {}
    for index in range(model.skeleton.n_layers):
        path = model.skeleton.layer_path(index)
        file = folder / beside_file(path)
        if not file.is_file():
            raise ArtifactError(f"{beside_file(path)} is missing; fetch the artifact again")
        with safe_open(file, "pt") as handle:
            names = [name for name in handle.keys() if name.endswith(f".{SCORES}")]  # noqa: SIM118 - a handle is no mapping
            for name in names:
                matrix = name.removesuffix(f".{SCORES}")
                n_out, n_in = handle.get_slice(f"{matrix}.weight").get_shape()
                scores = handle.get_tensor(name).numpy()
                one = Factored(scores, n_out, n_in, settings.adapter_rank)
                found[f"{path}.{matrix}"] = one
    return dict(sorted(found.items()))


def _choice(old: _AnySize, bytes_ratio: float) -> _Choice:
    item, others = old.dtype.itemsize, old.other_bytes
    whole = sum(one.whole for one in old.matrices.values())
    least = sum(one.parameters(1) for one in old.matrices.values())
    wanted = (bytes_ratio * old.source_bytes - others) / item
    if wanted < least:
        low, high = ((others + item * size) / old.source_bytes for size in (least, whole))
        raise RecipeError(
            f"bytes_ratio {bytes_ratio:g} cannot be reached: {old.folder.name} goes from {low:.3f} to {high:.3f}"
        )
    keep = min(1.0, wanted / whole)
    return _Choice(ranks_within(old.matrices, keep * whole), keep)


def _write_blocks(
    old: _AnySize,
    ranks: Mapping[str, int],
    writer: ArtifactWriter,
    probe_file: Path,
    progress: Progress,
) -> None:
    """Every block with these ranks, and what they compute in memory."""
    skeleton, model = old.model.skeleton, old.model
    title = Phase(PhaseKind.COMPRESSING, "resize", "resize")
    progress.begin(title, skeleton.n_layers + 1, "blocks")
    probe = begin_reference(skeleton, model.rest())
    for index in range(skeleton.n_layers):
        return_freed_memory()
        path, block = skeleton.layer_path(index), model.layer(index)
        stored = load_file(old.folder / beside_file(path))
        for name in old.settings.matrices(skeleton.family):
            full = f"{path}.{name}"
            if full in old.matrices:
                layer = linear_at(block, name)
                sized = _at_rank(layer, stored, name, old.matrices[full], ranks[full])
                block.set_submodule(name, sized)
        probe.advance(index, block)
        writer.write_block(index + 1, path, block, skeleton.empty_layer(index))
        progress.advance(path)
    rest = model.rest()
    writer.write_block(skeleton.n_layers + 1, "", rest, skeleton.empty_rest())
    probe.write(probe_file, skeleton, rest)
    progress.advance("embedding and head")
    writer.write_index()
    config = read_json_object(old.folder / "config.json")
    modules = {name: layout.model_dump() for name, layout in writer.layouts.items()}
    config["quantization_config"]["modules"] = modules
    writer.write_json("config.json", config)


def _at_rank(
    layer: Any, stored: Mapping[str, Tensor], name: str, matrix: Factored, rank: int
) -> nn.Module:
    """A matrix, or the pair of its first directions."""
    rank = max(1, rank)
    if not matrix.is_pair(rank):
        return dense_linear(stored[f"{name}.weight"].float(), bias_of(layer))
    pair = stored[f"{name}.up"][:, :rank].float(), stored[f"{name}.down"][:rank].float()
    adapter = None
    if f"{name}.adapter_up" in stored:
        adapter = stored[f"{name}.adapter_up"].float(), stored[f"{name}.adapter_down"].float()
    return pair_of(with_adapter(pair, adapter), bias_of(layer))


def _recipe(manifest: Manifest, keep: float) -> Recipe:
    """The recipe that would have given this size."""
    document = dict(manifest.recipe)
    document["stages"] = [
        stage | {"keep": keep} if stage["type"] == STAGE else stage for stage in document["stages"]
    ]
    return parse_recipe(document)


def _reports(
    manifest: Manifest,
    ranks: Mapping[str, int],
    found: Mapping[str, Factored],
) -> list[ModuleReport]:
    """What was done to each matrix, at the new size."""
    reports: list[ModuleReport] = []
    for old in manifest.modules:
        one = ModuleReport(**old)
        if one.stage == STAGE:
            matrix, rank = found[one.layer], max(1, ranks[one.layer])
            is_pair = matrix.is_pair(rank)
            figures = {name: value for name, value in one.figures.items() if name != "not_largest"}
            figures["rank"] = rank if is_pair else len(matrix.scores)
            one = ModuleReport(
                layer=one.layer, stage=one.stage, applied=is_pair, figures=figures,
                reason="" if is_pair else "a pair would not be smaller",
            )  # fmt: skip
        reports.append(one)
    return reports

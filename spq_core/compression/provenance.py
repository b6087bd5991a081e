"""What a result came from: the digest a run is known by, and the manifest of its artifact."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from torch import Tensor

from spq_core.artifact.manifest import Manifest, Source, known_sha256
from spq_core.data.samples import CalibrationSamples
from spq_core.models.checkpoint import Checkpoint
from spq_core.models.clean_copy import SourceModel
from spq_core.models.skeleton import Skeleton
from spq_core.models.weight_files import stored_bytes, weight_files
from spq_core.recipe.document import Recipe
from spq_core.report import ModuleReport


def fingerprint(
    recipe: Recipe, source: SourceModel, checkpoint: Checkpoint, rows: Sequence[Tensor]
) -> str:
    """Digest of everything a result depends on but the number of threads."""
    digest = hashlib.sha256(recipe.sha256().encode())
    digest.update(checkpoint.device.partition(":")[0].encode())
    for file in sorted({header.file for header in checkpoint.tensors.values()} | {"config.json"}):
        digest.update(f"{file} {known_sha256(source.folder / file)}\n".encode())
    for part in rows:
        digest.update(part.numpy().tobytes())
    digest.update(json.dumps(_versions(), sort_keys=True).encode())
    return digest.hexdigest()


def weights_digest(source: Path) -> str:
    """Of the contents of a model's weight files."""
    digests = [known_sha256(source / name) for name in weight_files(source)]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("spq", "torch", "transformers", "safetensors")}


def manifest_of(
    source: SourceModel,
    checkpoint: Checkpoint,
    skeleton: Skeleton,
    samples: CalibrationSamples | None,
    recipe: Recipe,
    modules: Sequence[ModuleReport],
) -> Manifest:
    """The manifest of an artifact; its files are entered when they are written."""
    return Manifest(
        profile=recipe.profile,
        source=Source(
            name=source.name,
            revision=source.revision,
            dtype=dtype_name(checkpoint),
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


def dtype_name(checkpoint: Checkpoint) -> str:
    """The name of the dtype that most of the source's bytes have."""
    return str(checkpoint.dtype).removeprefix("torch.")

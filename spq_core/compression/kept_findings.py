"""What a walk over the source found, kept for other runs that would find the same.

It depends on the source, on the tokens it is shown, and on what a recipe wants to know of it; not on how many bytes the result
may take. So one walk serves all sizes of a recipe.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jaxtyping import Int64
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from spq_core.compression.decisions import Findings
from spq_core.compression.survey import Survey
from spq_core.evaluation.known import Shelf, digest, versions
from spq_core.models.skeleton import Skeleton
from spq_core.planning.curve import Curve
from spq_core.planning.levels import Options
from spq_core.planning.structure import PrunableUnits, SingularDirections
from spq_core.recipe.document import Recipe
from spq_core.streaming.sensitivity import EmbeddingStatistics

SUFFIX = ".findings"
TENSORS = ("row_weights", "output_weights")
PARTS: Mapping[str, Any] = {
    "curves": Curve, "directions": SingularDirections, "neurons": PrunableUnits, "heads": PrunableUnits, "options": Options,
}  # fmt: skip
STATISTICS = ("head_inputs", "probabilities", "gradients")


def findings_name(recipe: Recipe, rows: Int64[Tensor, "n length"], device: str) -> str:
    """The file that findings about a source are kept in, named by all else they depend on."""
    document = recipe.document()
    key = {
        "stages": document["stages"],
        "floats": document["floats"],
        "allocation": None if recipe.target is None else recipe.target.allocation,
        "rows": hashlib.sha256(rows.numpy().tobytes()).hexdigest(),
        "shape": list(rows.shape),
        "device": device.partition(":")[0],
        "versions": versions(),
    }
    return f"{digest(key)}{SUFFIX}"


def keep_findings(findings: Findings, shelf: Shelf, source: str, name: str) -> None:
    """Leave findings for later runs.

    Args:
        source: digest of the source's weights.
    """
    if shelf.leave is None:
        return
    survey, statistics = findings.survey, findings.statistics
    tensors = {
        f"{kind}/{path}": tensor.contiguous()
        for kind in TENSORS
        for path, tensor in getattr(survey, kind).items()
    }
    tensors |= {f"statistics/{kind}": getattr(statistics, kind).contiguous() for kind in STATISTICS}
    parts = {
        kind: {path: asdict(part) for path, part in getattr(survey, kind).items()} for kind in PARTS
    }
    notes = {"parts": json.dumps(parts), "influence": json.dumps(survey.block_influence)}
    folder = shelf.leave / source
    folder.mkdir(parents=True, exist_ok=True)
    new = folder / f"{name}.{os.getpid()}.new"
    save_file(tensors, new, metadata=notes)
    new.replace(folder / name)


def kept_findings(
    shelf: Shelf, source: str, name: str, skeleton: Skeleton, recipe: Recipe, device: str
) -> Findings | None:
    """What an earlier run left; None if there is nothing, or what is there cannot be read."""
    for folder in shelf.shared(source):
        try:
            return _read(folder / name, skeleton, recipe, device)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError):
            continue
    return None


def _read(file: Path, skeleton: Skeleton, recipe: Recipe, device: str) -> Findings:
    with safe_open(file, "pt", device=device) as content:
        notes = content.metadata()
        tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118 - not a dict
    parts = json.loads(notes["parts"])
    fields: dict[str, Any] = {kind: _below(tensors, kind) for kind in TENSORS}
    for kind, make in PARTS.items():
        fields[kind] = {path: _made(make, document) for path, document in parts[kind].items()}
    survey = Survey(skeleton, recipe, block_influence=json.loads(notes["influence"]), **fields)
    statistics = _below(tensors, "statistics")
    return Findings(survey, EmbeddingStatistics(**{kind: statistics[kind] for kind in STATISTICS}))


def _below(tensors: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
    prefix = f"{kind}/"
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


def _made(make: Any, document: Mapping[str, Any]) -> Any:
    """A frozen value again; JSON has made lists of its tuples."""
    return make(
        **{key: tuple(one) if isinstance(one, list) else one for key, one in document.items()}
    )

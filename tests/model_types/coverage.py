"""Tries every type of model that the installed transformers has, and writes what became of it.

    python -m tests.model_types.coverage [--missing] [TYPE...]

A toy of each type is compressed by each of `RECIPES` in a process of its own; another loads the artifacts, and what they predict is
compared with the source and with the source's own class holding the weights that the artifact's layers say they have. Types that are not accepted
are tried all the same, to say what keeps them out. Rows go into docs/reference/coverage.json, from which the page of models is written
(`make docs`); with `--missing`, rows of the installed versions are not tried again.
"""

import json
import resource
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from subprocess import TimeoutExpired
from typing import Any

import torch
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from spq_core.models import architectures
from spq_core.models.skeleton import load_skeleton
from tests import forked
from tests.model_types.toys import (
    divergence,
    made,
    save_toy,
    source_predictions,
    twin_predictions,
    write_predictions,
)

FILE = Path(__file__).parents[2] / "docs" / "reference" / "coverage.json"
PORTABLE = {
    "stages": [{"type": "quantize", "method": "gptq", "bits": 4, "group_size": 32, "embedding": False}],
    "calibration": {"dataset": "builtin", "form": "windows", "samples": 4, "length": 64},
    "profile": "portable",
}  # fmt: skip
RECIPES: dict[str, str | dict[str, Any]] = {
    "int8": "int8", "balanced": "balanced", "gptq-4": "gptq-4", "spq": "spq", "portable-4": PORTABLE,
}  # fmt: skip
FARTHEST = {"int8": 5e-3, "balanced": 5e-3, "spq": 0.1, "gptq-4": 0.1, "portable-4": 0.1}
"""How far from its source a random model may be, in nats per token."""
TIMES = {"balanced": 20.0, "spq": 1000.0, "gptq-4": 1000.0, "portable-4": 1000.0}
"""The same, in times of what 8 bits cost it: some toys make much of little."""
SAME, ROUTED = 1e-4, 1e-3
"""Nats per token between products in other dtypes and orders; and where rounding may send a token to another expert."""
SHARE = 20
"""Of what a recipe costs a toy, that much at most may be of other products: some toys make much of little."""
SECONDS = 600.0
MEMORY_BYTES = 16 << 30
LONGEST_REASON = 300


def kinds() -> dict[str, str]:
    """Every type there is: those that write text, and those with towers for images."""
    wrappers = dict.fromkeys(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, "wrapper")
    known = dict.fromkeys(architectures.WRAPPER_TYPES, "wrapper")
    return dict(
        sorted(
            (dict.fromkeys(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, "decoder") | wrappers | known).items()
        )
    )


def admit(model_type: str, kind: str) -> None:
    """Accept a type in this process; whoever imported the lists has to see it, too."""
    if model_type in architectures.ALL_MODEL_TYPES:
        return
    own = "WRAPPER_TYPES" if kind == "wrapper" else "SUPPORTED_MODEL_TYPES"
    for module in list(sys.modules.values()):
        if getattr(module, "__name__", "").startswith(("spq_core.", "tests.")):
            for name in (own, "ALL_MODEL_TYPES"):
                if hasattr(module, name):
                    setattr(module, name, (*getattr(module, name), model_type))


def make(model_type: str, kind: str, folder: str) -> None:
    """For a process of its own: source, artifacts and what is expected of them."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    torch.set_num_threads(1)
    admit(model_type, kind)
    place = Path(folder)
    row: dict[str, Any] = {"recipes": {}}
    try:
        source = save_toy(model_type, place / "source")
        torch.save(source_predictions(source), place / "source.pt")
        family = load_skeleton(source).family
        row["parts"] = {
            "low rank": bool(family.attention), "neurons": bool(family.mlp_in), "heads": family.head_groups, "experts": bool(family.experts),
        }  # fmt: skip
    except Exception as error:  # noqa: BLE001 - whatever keeps a type out is what is to be told
        row["reason"] = _words(error)
    else:
        for name, recipe in RECIPES.items():
            try:
                artifact = made(source, recipe, place / name)
                if name != "portable-4":  # whose layers are another library's
                    torch.save(twin_predictions(source, artifact), place / f"{name}.twin.pt")
                row["recipes"][name] = {}
            except Exception as error:  # noqa: BLE001 - the same
                row["recipes"][name] = {"reason": _words(error)}
    (place / "row.json").write_text(json.dumps(row), encoding="utf-8")


def load(model_type: str, kind: str, folder: str) -> None:
    """For another process: what each artifact predicts."""
    torch.set_num_threads(1)
    admit(model_type, kind)
    for name in RECIPES:
        if (Path(folder) / name / "config.json").is_file():
            write_predictions(str(Path(folder) / name), str(Path(folder) / f"{name}.pt"))


def row_of(model_type: str, kind: str, folder: Path) -> dict[str, Any]:
    """Try one type."""
    try:
        code = forked.call(make, model_type, kind, str(folder), timeout=SECONDS)
        file = folder / "row.json"
        if not file.is_file():
            return {"reason": f"the process that tries it ended with {code}"}
        row: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        forked.call(load, model_type, kind, str(folder), timeout=SECONDS)
    except TimeoutExpired:
        return {"reason": f"a toy of it takes more than {SECONDS:.0f} seconds"}
    same = ROUTED if row.get("parts", {}).get("experts") else SAME
    row["recipes"] = {
        name: found or _judged(name, folder, same) for name, found in row["recipes"].items()
    }
    return row


def _judged(name: str, folder: Path, same: float) -> dict[str, Any]:
    """How far an artifact is from its source, or what is wrong with it."""
    if not (folder / f"{name}.pt").is_file():
        return {"reason": "a fresh process does not load it"}
    found, far = torch.load(folder / f"{name}.pt", weights_only=True), _far(folder, name)
    if not far < max(FARTHEST[name], TIMES.get(name, 0) * _far(folder, "int8")):
        return {"reason": f"{far:.3g} nats per token from the source"}
    twin, same = folder / f"{name}.twin.pt", max(same, far / SHARE)
    if twin.is_file() and not abs(divergence(torch.load(twin, weights_only=True), found)) < same:
        return {"reason": "it does not compute what its layers say"}
    return {"kl": float(f"{far:.2e}")}


def _far(folder: Path, name: str) -> float:
    """Nats per token between source and artifact; 0 where there is none."""
    if not (folder / f"{name}.pt").is_file():
        return 0.0
    source, found = (
        torch.load(folder / f"{one}.pt", weights_only=True) for one in ("source", name)
    )
    return divergence(source, found)


def _words(error: Exception) -> str:
    """The first line of what an error says."""
    said = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {said[0]}"[:LONGEST_REASON]


def main() -> None:
    """Try what is named, or all; end with 1 if an accepted type fails."""
    names = [name for name in sys.argv[1:] if name != "--missing"]
    versions = {name: version(name) for name in ("transformers", "torch")}
    document = json.loads(FILE.read_text(encoding="utf-8")) if FILE.is_file() else {}
    rows = document.get("types", {}) if document.get("versions") == versions else {}
    everything = kinds()
    left = [one for one in everything if one not in rows or "--missing" not in sys.argv]
    for model_type in names or left:
        with tempfile.TemporaryDirectory() as folder:
            row = row_of(model_type, everything[model_type], Path(folder))
        rows[model_type] = {"kind": everything[model_type], **row}
        document = {"versions": versions, "types": dict(sorted(rows.items()))}
        FILE.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        print(model_type, json.dumps(row)[:200], flush=True)
    failed = [
        one
        for one in architectures.ALL_MODEL_TYPES
        if one in rows and "kl" not in rows[one].get("recipes", {}).get("int8", {})
    ]
    if failed:
        raise SystemExit(f"these accepted types do not work by int8: {', '.join(failed)}")


if __name__ == "__main__":
    main()

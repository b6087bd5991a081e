"""What each recipe of the catalog makes of a real model: bytes, and how far it is from its source.

`python -m tests.quality.catalog RECIPE…` records figures anew, for all recipes where none is named.
"""

import json
import sys
import tempfile
from pathlib import Path

from spq_core.compression.compress import compress
from spq_core.data.texts import builtin_text
from spq_core.evaluation.measure import measure
from spq_core.evaluation.settings import EvaluationSettings
from spq_core.models.clean_copy import SourceModel
from spq_core.progress import Silent
from spq_core.recipe.catalog import catalog, resolve
from spq_core.workflow.preflight import preflight
from tests.models import real_model

RECORDED = Path(__file__).parent / "figures.json"
SETTINGS = EvaluationSettings(perplexity=("builtin",), limit=4, length=512, throughput=False)


def figures(source: Path, name: str, scratch: Path) -> dict[str, float]:
    """Compress by a recipe, calibrated on the built-in text, and measure.

    Args:
        scratch: an existing folder; the artifact stays there.
    """
    text = builtin_text()
    calibration = catalog()[name].calibration.model_dump() | {"dataset": text.name}
    recipe = resolve({"extends": name, "calibration": calibration})
    model, out = SourceModel(folder=source, name="SmolLM2-135M"), scratch / name
    preflight(model, recipe, text, scratch, Silent())
    compress(model, recipe, out, text=text)
    folders = {"source": source, "result": out}
    found = measure(folders, {text.name: text}, SETTINGS, Silent(), reference="source")
    result = found.models["result"]
    return {"bytes": result.load.bytes_on_disk, "kl": result.quality[text.name]["kl"] or 0.0}


def main() -> None:
    """Record."""
    known = json.loads(RECORDED.read_text(encoding="utf-8")) if RECORDED.is_file() else {}
    with tempfile.TemporaryDirectory() as folder:
        source = real_model(Path(folder) / "source")
        for name in sys.argv[1:] or catalog():
            known[name] = figures(source, name, Path(folder))
            RECORDED.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

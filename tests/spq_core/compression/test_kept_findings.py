"""One walk over the source for all sizes of a recipe."""

import pytest

from spq_core.artifact.manifest import read_manifest
from spq_core.compression import compress as module
from spq_core.compression.compress import SourceModel, compress
from spq_core.data.texts import builtin_text
from spq_core.evaluation.known import NO_SHELF, Shelf
from spq_core.recipe.catalog import resolve
from tests.models import save_tiny

SMALL = {"dataset": "builtin", "samples": 4, "length": 32}


@pytest.fixture
def walks(monkeypatch):
    """How often the source was walked over."""
    seen = []
    real = module.look

    def counted(recipe, *rest, **named):
        seen.append(recipe.metadata.name)
        return real(recipe, *rest, **named)

    monkeypatch.setattr(module, "look", counted)
    return seen


def made(tmp_path, name, document, shelf=NO_SHELF):
    source = tmp_path / "source"
    if not source.exists():
        save_tiny(source)
    recipe = resolve({"calibration": SMALL} | document)
    compress(
        SourceModel(folder=source, name="tiny"), recipe, tmp_path / name,
        text=builtin_text(), shelf=shelf,
    )  # fmt: skip
    files = read_manifest(tmp_path / name).files
    return {file: entry.sha256 for file, entry in files.items()}


@pytest.mark.parametrize("recipe", ["small", "spq"])
def test_all_sizes_share_a_walk_and_have_the_same_bytes(tmp_path, walks, recipe):
    shelf = Shelf(tmp_path / "shelf", tmp_path / "shelf")

    def sized(name, ratio, shelf):
        document = {"extends": recipe, "target": {"bytes_ratio": ratio}}
        return made(tmp_path, name, document, shelf)

    shared = [sized("a", 0.45, shelf), sized("b", 0.55, shelf)]
    assert len(walks) == 1
    alone = [sized("c", 0.45, NO_SHELF), sized("d", 0.55, NO_SHELF)]
    assert len(walks) == 3
    assert shared == alone
    assert shared[0] != shared[1]


def test_other_questions_and_other_tokens_are_another_walk(tmp_path, walks):
    shelf = Shelf(tmp_path / "shelf", tmp_path / "shelf")
    target = {"target": {"bytes_ratio": 0.5}}
    made(tmp_path, "a", {"extends": "small", **target}, shelf)
    made(tmp_path, "b", {"extends": "spq", **target}, shelf)
    made(
        tmp_path, "c", {"extends": "small", **target, "calibration": SMALL | {"samples": 5}}, shelf
    )
    assert len(walks) == 3
    for file in (tmp_path / "shelf").rglob("*.findings"):
        file.write_bytes(b"not what it was")
    made(tmp_path, "d", {"extends": "small", **target}, shelf)
    assert len(walks) == 4, "what cannot be read is found out again"

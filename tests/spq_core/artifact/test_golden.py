"""Artifacts made by earlier versions, which every later one must load.

`tests/golden/format-N/` holds tiny ones of each format version, with the logits they gave then. Never
make them anew: add a folder when the format changes.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from spq_core.artifact.manifest import read_manifest, verify_files
from spq_core.errors import ArtifactError
from spq_core.formats.profiles.format import FORMAT_VERSION
from tests.models import some_ids

GOLDEN = Path(__file__).parents[2] / "golden"
FOLDERS = sorted(GOLDEN.glob("format-*/*"))


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_it_loads_and_computes_what_it_did(folder):
    verify_files(folder, read_manifest(folder))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    expected = load_file(folder / "expected.logits")["logits"]
    with torch.no_grad():
        torch.testing.assert_close(model(some_ids()).logits, expected, rtol=1e-3, atol=1e-3)
    assert AutoTokenizer.from_pretrained(folder)("text").input_ids


def test_every_format_version_has_one():
    versions = {int(folder.parent.name.removeprefix("format-")) for folder in FOLDERS}
    assert versions == set(range(1, FORMAT_VERSION + 1))


@pytest.mark.parametrize("what", ["config", "manifest"])
def test_a_version_of_the_future_is_refused_with_the_remedy(tmp_path, what):
    folder = shutil.copytree(FOLDERS[0], tmp_path / "future")
    if what == "config":
        path = folder / "config.json"
        document = json.loads(path.read_text())
        document["quantization_config"]["format_version"] = FORMAT_VERSION + 1
    else:
        path = folder / "compression_manifest.json"
        document = json.loads(path.read_text()) | {"schema_version": 2}
    path.write_text(json.dumps(document))
    with pytest.raises(ArtifactError, match="version.*upgrade"):
        AutoModelForCausalLM.from_pretrained(folder)

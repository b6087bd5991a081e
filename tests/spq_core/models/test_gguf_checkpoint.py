"""A GGUF file as the model: its numbers, what must be allowed, and what is refused."""

import json
import shutil

import gguf
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from spq_core.compression.compress import compress
from spq_core.errors import MemoryNeededError, UnsafeModelError, UnsupportedModelError
from spq_core.models import gguf_checkpoint
from spq_core.models.clean_copy import SourceModel, clean_copy
from spq_core.models.reading import Reading
from spq_core.recipe.catalog import resolve
from tests.gguf_models import write_gguf
from tests.models import VOCABULARY, save_tiny, some_ids

KINDS = gguf.GGMLQuantizationType


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gguf")
    save_tiny(folder / "source", dtype=torch.bfloat16, vocabulary=VOCABULARY + 1)
    for kind in ("F16", "Q8_0"):
        write_gguf(folder / "source", folder / f"tiny.{kind}.gguf", KINDS[kind])
    (folder / "LICENSE").write_text("terms")
    return folder


def source_of(files, kind, *, allowed=False):
    reading = Reading(file=f"tiny.{kind}.gguf", allow_requantize=allowed)
    return SourceModel(folder=files, name="tiny", reading=reading)


def test_a_file_that_is_not_quantized_is_the_model(files):
    with clean_copy(source_of(files, "F16")) as copy:
        found = AutoModelForCausalLM.from_pretrained(copy.folder, dtype=torch.float32)
        tokens = AutoTokenizer.from_pretrained(copy.folder)("Yes, no.").input_ids
        assert (copy.folder / "LICENSE").read_text() == "terms"
        assert "F16" in copy.notes[0]
    source = AutoModelForCausalLM.from_pretrained(files / "source", dtype=torch.float32)
    assert torch.allclose(source(some_ids()).logits, found(some_ids()).logits, atol=1e-5)
    assert tokens == AutoTokenizer.from_pretrained(files / "source")("Yes, no.").input_ids


def test_a_quantized_file_is_widened_where_that_is_allowed(files, tmp_path):
    with pytest.raises(
        UnsafeModelError, match=r"tiny\.Q8_0\.gguf: .*Q8_0.*allow_requantize"
    ) as error:
        compress(source_of(files, "Q8_0"), resolve("int8"), tmp_path / "out", text=None)
    assert error.value.code == "already_quantized"
    report = compress(
        source_of(files, "Q8_0", allowed=True), resolve("int8"), tmp_path / "out", text=None
    )
    assert any("Q8_0" in note for note in report.notes)
    source = AutoModelForCausalLM.from_pretrained(files / "source", dtype=torch.float32)
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    difference = (source(some_ids()).logits - found(some_ids()).logits).abs().max()
    assert difference < 0.1 * source(some_ids()).logits.std()
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "spq_llama"


def of_unknown_type(folder):
    writer = gguf.GGUFWriter(folder / "odd.gguf", "clip")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


BAD = {
    "missing": (lambda _: None, "no GGUF file 'odd.gguf'"),
    "another format": (lambda folder: (folder / "odd.gguf").write_bytes(b"PK\x03\x04" * 9), "not a GGUF file"),
    "cut": (
        lambda folder: (folder / "odd.gguf").write_bytes((folder / "tiny.F16.gguf").read_bytes()[:3000]),
        "cannot be read|can be read",
    ),
    "not a language model": (of_unknown_type, "odd.gguf"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_other_files_are_refused_by_name(files, tmp_path, kind):
    make, said = BAD[kind]
    shutil.copytree(files, tmp_path / "files")
    make(tmp_path / "files")
    source = SourceModel(folder=tmp_path / "files", name="odd", reading=Reading(file="odd.gguf"))
    with pytest.raises((UnsafeModelError, UnsupportedModelError), match=said), clean_copy(source):
        pass


def test_a_part_of_a_file_is_named_as_one(files, tmp_path):
    shutil.copytree(files, tmp_path / "files")
    name = "tiny-00001-of-00002.gguf"
    shutil.copyfile(tmp_path / "files" / "tiny.F16.gguf", tmp_path / "files" / name)
    source = SourceModel(folder=tmp_path / "files", name="tiny", reading=Reading(file=name))
    with pytest.raises(UnsafeModelError, match="llama-gguf-split --merge"), clean_copy(source):
        pass


def test_a_file_that_does_not_fit_memory_is_refused_before_it_is_read(files, monkeypatch):
    monkeypatch.setattr(gguf_checkpoint, "memory_limit", lambda: 1000)
    with pytest.raises(MemoryNeededError), clean_copy(source_of(files, "F16")):
        pass

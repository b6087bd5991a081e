import json
import struct
import time

import pytest
import torch
from safetensors.torch import save_file

from spq_core.errors import ArtifactError
from spq_core.models.weight_files import read_header, stored_bytes, weight_files


def craft(header, data=b"", length=None):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def entry(start, stop, shape=None, dtype="U8"):
    return {
        "dtype": dtype,
        "shape": [stop - start] if shape is None else shape,
        "data_offsets": [start, stop],
    }


ATTACKS = {
    "length 2^63": craft({}, length=2**63),
    "header over the cap": craft({}, length=10_000_001),
    "pickle": b"\x80\x04\x95" + b"x" * 60,
    "zip": b"PK\x03\x04" + b"y" * 60,
    "empty": b"",
    "not JSON": craft(b"{nope"),
    "a list": craft(b"[]"),
    "duplicate keys": craft(b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"x"),
    "path as name": craft({"../a": entry(0, 1)}, b"x"),
    "overlap": craft({"a": entry(0, 2), "b": entry(1, 3)}, b"xxx"),
    "hole": craft({"a": entry(0, 1), "b": entry(2, 3)}, b"xxx"),
    "cut short": craft({"a": entry(0, 9)}, b"xxx"),
    "trailing bytes": craft({"a": entry(0, 1)}, b"xxx"),
    "shape lie": craft({"a": entry(0, 3, shape=[2])}, b"xxx"),
    "shape overflow": craft({"a": entry(0, 3, shape=[2**62, 4])}, b"xxx"),
    "negative": craft({"a": entry(0, 3, shape=[-3])}, b"xxx"),
    "float shape": craft({"a": entry(0, 3, shape=[3.0])}, b"xxx"),
    "unknown dtype": craft({"a": entry(0, 3, dtype="Q3")}, b"xxx"),
    "deep JSON": craft(b'{"a":' * 50_000),
}  # fmt: skip


@pytest.mark.parametrize("name", ATTACKS)
def test_malformed_files_are_refused_quickly_with_their_name(tmp_path, name):
    path = tmp_path / "model.safetensors"
    path.write_bytes(ATTACKS[name])
    started = time.monotonic()
    with pytest.raises(ArtifactError, match=r"model\.safetensors"):
        read_header(path)
    assert time.monotonic() - started < 20


def test_reads_what_the_library_writes(tmp_path):
    tensors = {"a.b": torch.zeros(3, 4), "c": torch.zeros(5, dtype=torch.int8)}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    header = read_header(tmp_path / "model.safetensors")
    assert header["a.b"].shape == (3, 4)
    assert header["a.b"].n_bytes == 48
    assert header["c"].dtype == "I8"
    assert stored_bytes(tmp_path) == (tmp_path / "model.safetensors").stat().st_size


@pytest.mark.parametrize(
    "target", ["../x.safetensors", "/etc/passwd", "..", "sub/x.safetensors", 7]
)
def test_index_cannot_point_outside_its_folder(tmp_path, target):
    index = {"weight_map": {"a": target}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ArtifactError, match="not a file of this folder|not a valid index"):
        weight_files(tmp_path)


def test_missing_shard_is_named(tmp_path):
    index = {"weight_map": {"a": "model-00002-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ArtifactError, match="model-00002-of-00002.safetensors.*missing"):
        weight_files(tmp_path)

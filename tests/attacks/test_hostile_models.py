"""A model's author against the worker. Numbers are those of the table in SECURITY.md."""

import json
import pickle
import struct
import zipfile

import jinja2
import pytest
import torch
from safetensors.torch import load_file, save_file

from spq_core.compression.compress import SourceModel, compress
from spq_core.data.texts import builtin_text
from spq_core.errors import ArtifactError, NumericalError, SpqError, UnsafeModelError
from spq_core.hub.client import hub_api
from spq_core.hub.errors import HubError
from spq_core.hub.fetch import FetchLimits, fetch_model
from spq_core.recipe.catalog import resolve
from tests.attacks.conftest import cheaply
from tests.hub_server import WRITE_TOKEN

CALIBRATED = {"extends": "spq-paper", "calibration": {"dataset": "builtin", "samples": 3, "length": 32}}  # fmt: skip
MATRIX = "model.layers.1.mlp.up_proj.weight"


def fetch(hub, folder, tmp_path, **limits):
    """By the door of the Hub; returns the folder it came to."""
    hub.add_model("evil/model", folder)
    api = hub_api(hub.url, WRITE_TOKEN)
    limit = FetchLimits(**limits)
    return fetch_model(api, "evil/model", "main", tmp_path / "got", limits=limit).folder


def compressed(folder, tmp_path, recipe="int8"):
    """By the door of a local folder, to the end of a run."""
    source = SourceModel(folder=folder, name="evil")
    return compress(source, resolve(recipe), tmp_path / "out", text=builtin_text())


def canary(tmp_path):
    """Code that shows that it ran, and where."""
    sign = tmp_path / "canary"
    return sign, f"open({str(sign)!r}, 'w')\n".encode()


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_1_pickled_weights_are_not_fetched(hub, hostile, tmp_path):
    sign, _ = canary(tmp_path)
    folder = hostile({"pytorch_model.bin": pickle.dumps(Payload(sign))})
    (folder / "model.safetensors").unlink()
    with cheaply(), pytest.raises(UnsafeModelError, match="can run code") as refused:
        fetch(hub, folder, tmp_path)
    assert refused.value.code == "unsafe_format"
    assert hub.sent_bytes == 0
    with pytest.raises(UnsafeModelError, match="can run code"):
        compressed(folder, tmp_path)
    assert not sign.exists()


@pytest.mark.parametrize("kind", ["pickle", "zip", "7z"])
def test_2_other_formats_under_the_name_of_safetensors_are_refused(hostile, tmp_path, kind):
    sign, _ = canary(tmp_path)
    disguised = tmp_path / "disguised"
    if kind == "pickle":
        disguised.write_bytes(pickle.dumps(Payload(sign)))
    elif kind == "7z":
        disguised.write_bytes(b"7z\xbc\xaf\x27\x1c" + bytes(100))
    else:
        with zipfile.ZipFile(disguised, "w") as archive:
            archive.writestr("data.pkl", pickle.dumps(Payload(sign)))
    folder = hostile({"model.safetensors": disguised.read_bytes()})
    with cheaply(), pytest.raises(ArtifactError, match=r"model\.safetensors"):
        compressed(folder, tmp_path)
    assert not sign.exists()


CODE_IN_JSON = {
    "3 auto_map of an unknown type": {"config": {"model_type": "evil", "auto_map": {"AutoModelForCausalLM": "evil.Model"}}},
    "4 kernels": {"config": {"_attn_implementation_internal": "evil/kernels"}},
    "4 kernels by the public name": {"config": {"attn_implementation": "evil/kernels:attend"}},
    "4 kernel configuration": {"config": {"kernel_config": {"RMSNorm": "evil/kernels"}}},
    "4 kernels of something else": {"config": {"_experts_implementation_internal": "evil/kernels"}},
    "5 two repositories": {"config": {"draft": {"model_type": "llama", "_name_or_path": "evil/code"}}},
    "6 quantization": {"config": {"quantization_config": {"quant_method": "x", "format": "./evil.py"}}},
    "6 sparsity": {"config": {"sparsity_config": {"format": "./evil.py"}}},
    "6 compression": {"config": {"compression_config": {"format": "./evil.py"}}},
}  # fmt: skip
LEFT_OUT = {
    "3 auto_map": {"config": {"auto_map": {"AutoModelForCausalLM": "evil.Model"}}},
    "3 auto_map of the tokenizer": {"tokenizer_config": {"auto_map": {"AutoTokenizer": ["evil.T", None]}}},
    "5 trust": {"config": {"trust_remote_code": True}},
    "5 trust, nested": {"config": {"rope_scaling": {"rope_type": "default", "trust_remote_code": True}}},
    "3 a repository that generates": {"generation_config": {"custom_generate": "evil/code"}},
    "6 files elsewhere": {"tokenizer_config": {"tokenizer_file": "/etc/passwd"}},
}  # fmt: skip
"""What models of known types carry along from times when they were not: no library gets to see it."""


@pytest.mark.parametrize("name", CODE_IN_JSON)
def test_3_to_6_json_that_names_code_is_refused_at_both_doors(hub, hostile, tmp_path, name):
    sign, code = canary(tmp_path)
    folder = hostile({"evil.py": code, "__init__.py": code}, **CODE_IN_JSON[name])
    for enter in (lambda: fetch(hub, folder, tmp_path), lambda: compressed(folder, tmp_path)):
        with cheaply(), pytest.raises(UnsafeModelError) as refused:
            enter()
        assert refused.value.code in {"unsafe_config", "already_quantized"}
    assert not {"model.safetensors", "evil.py"} & set(hub.downloaded())
    assert not sign.exists()


@pytest.mark.parametrize("name", LEFT_OUT)
def test_3_to_6_what_a_known_type_does_not_need_is_seen_by_no_library(hub, hostile, tmp_path, name):
    sign, code = canary(tmp_path)
    folder = hostile({"evil.py": code, "__init__.py": code}, **LEFT_OUT[name])
    got = fetch(hub, folder, tmp_path)
    assert "evil.py" not in hub.downloaded()
    for number, door in enumerate((got, folder)):
        (tmp_path / str(number)).mkdir()
        assert compressed(door, tmp_path / str(number)).notes
        kept = "".join(
            path.read_text() for path in (tmp_path / str(number) / "out").glob("*config.json")
        )
        assert not [word for word in ("evil", "trust_remote_code", "/etc/passwd") if word in kept]
    assert not sign.exists()


BROKEN = {
    "padding": {"pad_token_id": 10**9, "eos_token_id": -5, "bos_token_id": 10**12},
    "activation": {"hidden_act": "os.system"},
    "dtype": {"dtype": "float4_e2m1fn_x2"},
    "rope": {"rope_scaling": {"rope_type": "longrope", "factor": 0, "short_factor": [1] * 1000, "long_factor": []}},
    "heads": {"num_attention_heads": 7},
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_10_a_config_that_makes_no_model_is_an_error_with_a_name(hostile, tmp_path, name):
    """The owner of a service is not woken for it, as he is for `internal`."""
    with cheaply(), pytest.raises(SpqError) as refused:
        compressed(hostile(config=BROKEN[name]), tmp_path)
    assert refused.value.code != "internal"


def test_ordinary_json_is_not_taken_for_code(hostile, tmp_path):
    folder = hostile(
        config={
            "_name_or_path": "org/name", "_model_name_or_path": "org/name", "_flavour": "plain", "_attn_implementation_autoset": True, "_sliding_window_pattern": 6,
            "attn_implementation": "sdpa", "transformers.js_config": {"dtype": {"a": "fp16"}},
            "trust_remote_code": False,
        },
        tokenizer_config={
            "special_tokens_map_file": "/home/author/special_tokens_map.json", "tokenizer_file": None,
            "extra": [{"__type": "AddedToken", "content": "<x>"}],
        },
    )  # fmt: skip
    compressed(folder, tmp_path)


def test_7_a_header_of_a_million_tensors_costs_nothing(hostile, tmp_path):
    entries = (
        f'"t{n}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}' for n in range(1_000_000)
    )
    header = ("{" + ",".join(entries) + "}").encode()
    folder = hostile({"model.safetensors": struct.pack("<Q", len(header)) + header})
    with cheaply(), pytest.raises(ArtifactError, match="not a safetensors file"):
        compressed(folder, tmp_path)


def test_8_an_index_does_not_lead_out_of_its_folder(hostile, tmp_path):
    secret = tmp_path / "secret.safetensors"
    save_file({MATRIX: torch.ones(160, 96)}, secret)
    for target in ("../secret.safetensors", str(secret)):
        index = json.dumps({"weight_map": {MATRIX: target}}).encode()
        folder = hostile({"model.safetensors.index.json": index})
        (folder / "model.safetensors").unlink()
        with pytest.raises(ArtifactError, match="not a file of this folder"):
            compressed(folder, tmp_path)
        for file in (*folder.iterdir(), folder):
            file.unlink() if file.is_file() else file.rmdir()


def test_9_odd_names_of_files_are_not_fetched(hub, hostile, tmp_path):
    commit = hub.add_model("evil/names", hostile())
    good = set(commit.files)
    odd = ["../outside.json", "..\\outside.json", "a/../../b.json", "nul\0.json", "x" * 300 + ".json",
           "cоnfig.json", "config.json\u202e", ".cache/x.json", "sub/model.safetensors"]  # fmt: skip
    commit.files |= dict.fromkeys([*odd, *(f"file{n}.json" for n in range(10_000))], b"{}")
    with cheaply():
        api = hub_api(hub.url, WRITE_TOKEN)
        got = fetch_model(api, "evil/names", "main", tmp_path / "got", limits=FetchLimits())
    assert {path.name for path in got.folder.iterdir()} == good
    assert not (tmp_path / "outside.json").exists()


@pytest.mark.parametrize(
    "sizes",
    [
        {"num_hidden_layers": 1_000_000},
        {"hidden_size": 1_000_000_000},
        {"vocab_size": 1 << 21, "hidden_size": 1 << 16},
        {"num_hidden_layers": 512},
        {"intermediate_size": 1 << 20},
        {"num_attention_heads": 4096, "head_dim": 4096},
        {"max_position_embeddings": 10**12},
        {"num_hidden_layers": "3"},
    ],
)
def test_10_a_config_larger_than_its_weights_allocates_nothing(hostile, tmp_path, sizes):
    folder = hostile(config=sizes)
    with cheaply(), pytest.raises(UnsafeModelError, match=r"config\.json"):
        compressed(folder, tmp_path)


def test_11_a_download_that_does_not_end_is_cut_off(hub, hostile, tmp_path):
    hub.endless.add("model.safetensors")
    with cheaply(), pytest.raises(UnsafeModelError, match="more bytes than"):
        fetch(hub, hostile(), tmp_path)
    stored = sum(path.stat().st_size for path in (tmp_path / "got").rglob("*") if path.is_file())
    assert stored < 80 << 20
    (tmp_path / "large").write_bytes(bytes(90 << 20))  # and the limit is gone again
    with pytest.raises(HubError, match="takes up to"):
        fetch(hub, tmp_path / "hostile", tmp_path, max_bytes=1000)


def test_12_what_was_looked_at_is_what_is_fetched(hub, hostile, tmp_path):
    folder = hostile()
    first = hub.add_model("evil/model", folder)
    swapped = dict(first.files) | {
        "config.json": json.dumps({"auto_map": {"AutoConfig": "evil.C"}}).encode(),
        "model.safetensors": b"other weights",
    }
    hub.on_request["/resolve/"] = lambda: hub.models["evil/model"].add(swapped, "swap")
    api = hub_api(hub.url, WRITE_TOKEN)
    got = fetch_model(api, "evil/model", "main", tmp_path / "got", limits=FetchLimits())
    assert len(hub.models["evil/model"].commits) > 1
    assert got.commit == first.oid
    weights = (got.folder / "model.safetensors").read_bytes()
    assert weights == first.files["model.safetensors"]


BOMBS = [
    "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
    "{{ 'A' * 2147483648 }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
]


@pytest.mark.parametrize("template", BOMBS)
def test_13_a_template_is_carried_along_and_never_rendered(
    hostile, tmp_path, monkeypatch, template
):
    def rendered(*_: object, **__: object):
        raise AssertionError("a template of the model was compiled")

    monkeypatch.setattr(jinja2.Environment, "from_string", rendered)
    folder = hostile({"chat_template.jinja": template.encode()})
    with cheaply():
        compressed(folder, tmp_path, CALIBRATED)
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == template


def test_14_tokenizers_are_bounded(hub, hostile, tmp_path):
    """A size by the listing; hopeless patterns by the library's own limit of steps."""
    folder = hostile({"tokenizer.json": bytes((64 << 20) + 1)})
    with cheaply(), pytest.raises(UnsafeModelError, match=r"tokenizer\.json is larger"):
        fetch(hub, folder, tmp_path)
    assert "model.safetensors" not in hub.downloaded()


def test_14_a_hopeless_pattern_ends(hostile, tmp_path):
    folder = hostile()
    document = json.loads((folder / "tokenizer.json").read_text())
    hopeless = {"type": "Split", "pattern": {"Regex": r"(\w+\s?)+\!\!\!$"}, "behavior": "Isolated", "invert": False}  # fmt: skip
    document["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [hopeless, document["pre_tokenizer"]],
    }
    (folder / "tokenizer.json").write_text(json.dumps(document))
    with cheaply():
        compressed(folder, tmp_path, CALIBRATED)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", [MATRIX, "model.embed_tokens.weight", "model.norm.weight"])
def test_15_weights_that_are_no_numbers_are_named(hostile, tmp_path, name, value):
    folder = hostile()
    weights = load_file(folder / "model.safetensors")
    weights[name].view(-1)[7] = value
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with cheaply(), pytest.raises(NumericalError) as refused:
        compressed(folder, tmp_path)
    assert name.rpartition("model.layers.1.")[2] in str(refused.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("value", [0.0, 1e-40])
def test_15_weights_of_nothing_do_no_harm(hostile, tmp_path, value):
    folder = hostile()
    weights = load_file(folder / "model.safetensors")
    weights[MATRIX].fill_(value)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    compressed(folder, tmp_path, CALIBRATED)

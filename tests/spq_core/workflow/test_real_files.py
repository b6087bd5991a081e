"""Model folders as real people have them: each kind is worked with as meant, or refused with its cause."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import spq_core  # noqa: F401 - teaches transformers the format
from spq_core.artifact.manifest import read_manifest, verify_files
from spq_core.artifact.same_text import differences
from spq_core.compression.compress import compress
from spq_core.data.texts import builtin_text
from spq_core.errors import (
    EvaluationError,
    SpqError,
    TokenizerError,
    UnsafeModelError,
    UnsupportedModelError,
    WeightsMismatchError,
)
from spq_core.estimate.estimate import estimate, folder_shapes
from spq_core.evaluation.measure import measure
from spq_core.evaluation.settings import EvaluationSettings
from spq_core.models.clean_copy import SourceModel, clean_copy
from spq_core.models.links import refuse_links_outside
from spq_core.progress import Silent
from spq_core.recipe.catalog import resolve
from spq_core.recipe.document import parse_recipe
from spq_core.workflow.job import compress_and_load, compress_and_measure
from tests.models import FAMILIES, VOCABULARY, byte_tokenizer, metaspace_tokenizer, save_tiny

GOLDEN = Path(__file__).parents[2] / "golden" / "tokenizers"
WINDOWS = {"dataset": "builtin", "form": "windows", "samples": 4, "length": 64}
CHAT = "{% for m in messages %}<s>{{ m['content'] }}</s>{% endfor %}"
PAPER = {"extends": "spq-paper", "calibration": {"dataset": "builtin", "samples": 3, "length": 32}}


def tiny(tmp_path, family="llama-untied", dtype=torch.bfloat16):
    return save_tiny(tmp_path / "model", family, dtype)


def edit(path, **changes):
    document = json.loads(path.read_text())
    path.write_text(json.dumps(document | changes))


def rewrite(folder, change):
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})
    return folder


def compressed(folder, tmp_path, recipe="int8"):
    source = SourceModel(folder=folder, name="tiny")
    return compress(source, resolve(recipe), tmp_path / "out", text=builtin_text())


def measured(*folders):
    settings = EvaluationSettings(perplexity=("builtin",), limit=8, length=64, throughput=False)
    named = {folder.name: folder for folder in folders}
    return measure(named, {"builtin": builtin_text()}, settings, Silent(), reference=None)


def without(name):
    return lambda weights: {key: part for key, part in weights.items() if key != name}


def with_more(name, tensor):
    return lambda weights: weights | {name: tensor}


MISMATCHES = {
    "headless": (without("lm_head.weight"), r"lack 'lm_head\.weight'.*without a head"),
    "lacks a matrix of the last layer": (
        without("model.layers.2.mlp.up_proj.weight"),
        r"lack 'model\.layers\.2\.mlp\.up_proj\.weight'",
    ),
    "names of a training wrapper": (
        lambda weights: {f"base_model.model.{key}": part for key, part in weights.items()},
        r"begin with 'base_model\.model\.'.*merge",
    ),
    "an adapter that is not merged": (
        with_more("model.layers.0.self_attn.q_proj.lora_A.default.weight", torch.zeros(8, 96)),
        r"lora_A.*merge it",
    ),
    "a classifier's head": (with_more("score.weight", torch.zeros(2, 96)), r"no place for 'score\.weight'"),
    "a learned bias with the name of a mask": (
        with_more("model.layers.0.self_attn.bias", torch.ones(96)), r"no place for 'model\.layers\.0\.self_attn\.bias'",
    ),
    "a value head": (with_more("v_head.summary.weight", torch.zeros(1, 96)), r"no place for 'v_head"),
    "layers that the configuration does not count": (
        with_more("model.layers.3.mlp.up_proj.weight", torch.zeros(160, 96)), r"no place for 'model\.layers\.3",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MISMATCHES)
def test_weights_of_another_model_are_refused_before_any_work(tmp_path, name):
    change, message = MISMATCHES[name]
    folder = rewrite(tiny(tmp_path), change)
    with pytest.raises(WeightsMismatchError, match=message):
        compressed(folder, tmp_path)
    with pytest.raises(WeightsMismatchError, match=message):
        measured(folder)
    assert not (tmp_path / "out").exists()


def test_a_vocabulary_of_another_size_is_named(tmp_path):
    folder = tiny(tmp_path)
    edit(folder / "config.json", vocab_size=260)
    for call in (lambda: compressed(folder, tmp_path), lambda: measured(folder)):
        with pytest.raises(
            WeightsMismatchError, match=r"\[259, 96\].*\[260, 96\] \(vocab_size 260\)"
        ):
            call()


@pytest.mark.parametrize("kind", ["LlamaForSequenceClassification", "LlamaModel", "LlamaForTokenClassification"])  # fmt: skip
def test_a_model_of_another_kind_is_refused_by_its_name(tmp_path, kind):
    folder = tiny(tmp_path)
    edit(folder / "config.json", architectures=[kind])
    for call in (lambda: compressed(folder, tmp_path), lambda: measured(folder)):
        with pytest.raises(UnsupportedModelError, match=f"{kind}.*not a causal language model"):
            call()


def test_constants_and_unread_integers_are_left_out_with_a_note(tmp_path):
    folder = rewrite(
        tiny(tmp_path),
        lambda weights: (
            weights
            | {
                "model.embed_positions.position_ids": torch.arange(64),
                "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(12),
            }
        ),
    )
    report = compressed(folder, tmp_path)
    assert [note for note in report.notes if "position_ids" in note]
    assert not [note for note in report.notes if "inv_freq" in note]


def test_a_tied_head_that_is_stored_twice_is_no_stranger(tmp_path):
    folder = rewrite(
        tiny(tmp_path, "llama"),
        lambda weights: weights | {"lm_head.weight": weights["model.embed_tokens.weight"].clone()},
    )
    assert compressed(folder, tmp_path).notes == ()


LEFTOVERS = {
    "auto_map": ("config.json", {"auto_map": {"AutoModelForCausalLM": "modeling_x.X"}}),
    "a list of pipelines": ("config.json", {"custom_pipelines": {"x": {"impl": "x.Y"}}}),
    "a path of another machine": (
        "tokenizer_config.json",
        {"tokenizer_file": "/home/someone/tokenizer.json", "name_or_path": "/content/out"},
    ),
    "a path of Windows": ("tokenizer_config.json", {"vocab_file": "C:\\models\\vocab.json"}),
    "auto_map of a tokenizer": (
        "tokenizer_config.json",
        {"auto_map": {"AutoTokenizer": ["tokenization_x.X", None]}},
    ),
}


@pytest.mark.parametrize("name", LEFTOVERS)
def test_harmless_leftovers_are_left_out_of_the_copy_with_a_note(tmp_path, name):
    folder = tiny(tmp_path)
    file, changes = LEFTOVERS[name]
    edit(folder / file, **changes)
    report = compressed(folder, tmp_path)
    key = next(iter(changes))
    assert any(file in note and key in note for note in report.notes)
    assert key not in json.loads((tmp_path / "out" / file).read_text())
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("abc") == byte_tokenizer()("abc")


def test_code_for_an_unknown_type_is_still_refused(tmp_path):
    folder = tiny(tmp_path)
    edit(folder / "config.json", model_type="mystery", auto_map={"AutoConfig": "x.Y"})
    with pytest.raises(UnsafeModelError, match="auto_map"):
        compressed(folder, tmp_path)


def test_all_templates_and_terms_travel(tmp_path):
    folder = tiny(tmp_path)
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = {"default": CHAT, "tool_use": f"TOOLS {CHAT}"}
    tokenizer.save_pretrained(folder)
    terms = {"NOTICE", "USE_POLICY.md", "LICENSE-2.0", "Third Party Licenses.txt"}
    for name in terms:
        (folder / name).write_text(name)
    (folder / "modeling_licence.py").write_text("raise SystemExit")
    compressed(folder, tmp_path)
    out = tmp_path / "out"
    assert AutoTokenizer.from_pretrained(out).chat_template == tokenizer.chat_template
    assert terms <= {path.name for path in out.iterdir()}
    assert not list(out.rglob("*.py"))
    manifest = read_manifest(out)
    verify_files(out, manifest)
    assert "additional_chat_templates/tool_use.jinja" in manifest.files


def test_a_folder_of_links_is_followed_by_its_own_user(tmp_path):
    real = tiny(tmp_path)
    linked = tmp_path / "linked"
    linked.mkdir()
    for file in real.iterdir():
        (linked / file.name).symlink_to(file)
    compressed(linked, tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("abc") == byte_tokenizer()("abc")
    with pytest.raises(UnsafeModelError, match=r"config\.json is a link") as refused:
        refuse_links_outside(linked, [])
    assert refused.value.code == "unsafe_link"
    refuse_links_outside(linked, [tmp_path])


def test_a_snapshot_of_the_hub_cache_is_no_folder_of_strange_links(tmp_path):
    real = tiny(tmp_path)
    snapshot, blobs = (
        tmp_path / "models--a--b" / "snapshots" / "abc",
        tmp_path / "models--a--b" / "blobs",
    )
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(sorted(real.iterdir())):
        file.rename(blobs / str(number))
        (snapshot / file.name).symlink_to(os.path.relpath(blobs / str(number), snapshot))
    refuse_links_outside(snapshot, [])
    compressed(snapshot, tmp_path)


def test_a_ratio_counts_sixteen_bits_a_weight_and_floats_are_stored_in_them(tmp_path):
    folder = save_tiny(tmp_path / "model", "llama", torch.float32, hidden=192)
    half = save_tiny(tmp_path / "half", "llama", torch.bfloat16, hidden=192)
    recipe = {"stages": [{"type": "quantize", "method": "rate"}], "target": {"bytes_ratio": 0.6}}
    recipe |= {"calibration": WINDOWS}
    report = compressed(folder, tmp_path, recipe)
    wanted = 0.6 * (half / "model.safetensors").stat().st_size
    assert report.artifact_bytes == pytest.approx(wanted, rel=0.05)
    stored = load_file(next((tmp_path / "out").glob("model-00004-*.safetensors")))
    assert stored["model.norm.weight"].dtype == torch.bfloat16
    expected = estimate(resolve(recipe), folder_shapes(folder)).artifact_bytes.expected
    assert expected == pytest.approx(wanted, rel=0.01)


def test_floats_stay_as_wide_as_the_source_where_that_is_asked_for(tmp_path):
    folder = save_tiny(tmp_path / "model", "llama", torch.float32)
    recipe = {"stages": [{"type": "quantize"}], "floats": "source"}
    compressed(folder, tmp_path, recipe)
    stored = load_file(next((tmp_path / "out").glob("model-00004-*.safetensors")))
    assert stored["model.norm.weight"].dtype == torch.float32


def test_a_pad_beyond_the_embedding_is_the_tokenizers_fault(tmp_path):
    folder = tiny(tmp_path)
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(folder)
    with pytest.raises(TokenizerError, match=r"model: the tokenizer pads with '\[PAD\]', id 259.*259 rows.*'</s>'"):  # fmt: skip
        compressed(folder, tmp_path, PAPER)
    assert compressed(folder, tmp_path).artifact_bytes  # nothing is padded here


def test_tokens_beyond_the_embedding_are_named(tmp_path):
    folder = tiny(tmp_path)
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["th"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(TokenizerError, match="id 259 for 'th'"):
        measured(folder)


def test_a_tokenizer_that_needs_a_package_says_which(tmp_path, monkeypatch):
    folder = tiny(tmp_path)

    def lacks(*_args, **_named):
        raise ImportError("You need to install sentencepiece to use this tokenizer")

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lacks)
    with pytest.raises(TokenizerError, match="not installed here.*sentencepiece"):
        measured(folder)


def test_models_with_other_tokens_are_not_compared(tmp_path):
    one, other = tiny(tmp_path), save_tiny(tmp_path / "other", "llama-untied", torch.bfloat16)
    document = json.loads((other / "tokenizer.json").read_text())
    vocabulary = document["model"]["vocab"]
    vocabulary["a"], vocabulary["e"] = vocabulary["e"], vocabulary["a"]
    (other / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(
        EvaluationError, match="other and model cut the same text into different tokens"
    ):
        measured(one, other)


LOOKED_UP = sorted(set(FAMILIES) - {"gpt2", "opt", "gpt-neox"})


@pytest.mark.parametrize("family", LOOKED_UP)
def test_an_artifact_reads_text_as_its_source_whatever_is_looked_up_by_type(tmp_path, family):
    folder = save_tiny(tmp_path / "model", family, torch.bfloat16, vocabulary=500)
    metaspace_tokenizer(folder, builtin_text().calibration[:100_000])
    compressed(folder, tmp_path)
    assert list(differences(tmp_path / "out", folder)) == []


def test_a_difference_in_reading_text_is_found(tmp_path):
    folder = save_tiny(tmp_path / "model", "mistral", torch.bfloat16, vocabulary=500)
    metaspace_tokenizer(folder, builtin_text().calibration[:100_000])
    compressed(folder, tmp_path)
    edit(tmp_path / "out" / "tokenizer_config.json", eos_token="<s>")
    edit(tmp_path / "out" / "generation_config.json", temperature=0.5)
    found = "; ".join(differences(tmp_path / "out", folder))
    assert "special tokens" in found
    assert "temperature" in found


def test_a_repair_by_type_is_made_for_artifacts_too(tmp_path):
    """Of Mistral's splitting rule: transformers reads the type from config.json once more."""
    folder = tiny(tmp_path, "mistral")
    edit(folder / "config.json", transformers_version="4.57.0")
    compressed(folder, tmp_path)
    rules = []
    for place in (folder, tmp_path / "out"):
        tokenizer = byte_tokenizer().backend_tokenizer
        repaired = PreTrainedTokenizerFast._patch_mistral_regex(
            tokenizer, str(place), is_local=True, init_kwargs={}, fix_mistral_regex=True
        )
        rules.append(repaired.pre_tokenizer.pre_tokenize_str("AbC's 123"))
    assert rules[0] == rules[1]
    assert rules[0] != byte_tokenizer().backend_tokenizer.pre_tokenizer.pre_tokenize_str(
        "AbC's 123"
    )


def test_a_golden_artifact_that_read_text_wrongly_reads_it_right():
    folder = GOLDEN / "mistral"
    wanted = json.loads((folder / "expected-ids.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert {text: tokenizer(text)["input_ids"] for text in wanted} == wanted


def test_what_is_no_model_is_named_with_what_to_name_instead(tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    with pytest.raises(SpqError, match="adapter.*'org/base'"):
        compressed(adapter, tmp_path)
    quantized = tmp_path / "quantized"
    quantized.mkdir()
    (quantized / "x.Q4_K_M.gguf").write_bytes(b"GGUF")
    with pytest.raises(SpqError, match=r"GGUF files \(x\.Q4_K_M\.gguf\)"):
        compressed(quantized, tmp_path)
    tiny(tmp_path / "outer")
    with pytest.raises(SpqError, match="subfolders model do"):
        compressed(tmp_path / "outer", tmp_path)


def test_lines_with_pads_are_refused_where_weights_would_be_fitted_to_them(tmp_path):
    recipe = {
        "stages": [{"type": "quantize", "method": "gptq"}],
        "calibration": WINDOWS | {"form": "lines"},
    }
    with pytest.raises(SpqError, match=r"padding.*calibration\.form to windows"):
        compressed(tiny(tmp_path), tmp_path, recipe)
    assert parse_recipe(resolve("spq-paper").document()).calibration.form == "lines"


@pytest.mark.parametrize(
    "name", ["NOTICE", "tokenizer.json", "additional_chat_templates/rag.jinja"]
)
def test_a_link_to_nothing_is_named_and_not_left_out(tmp_path, name):
    folder = tiny(tmp_path)
    (folder / name).unlink(missing_ok=True)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).symlink_to(tmp_path / "gone")
    with pytest.raises(UnsafeModelError, match=f"{name} is a link to a file that does not exist"):
        compressed(folder, tmp_path)


def test_a_byte_order_mark_in_a_settings_file_is_left_out(tmp_path):
    folder = tiny(tmp_path)
    config = folder / "config.json"
    config.write_bytes(b"\xef\xbb\xbf" + config.read_bytes())
    compressed(folder, tmp_path)


def test_a_folder_among_the_templates_is_no_template(tmp_path):
    folder = tiny(tmp_path)
    (folder / "additional_chat_templates" / "rag.jinja").mkdir(parents=True)
    compressed(folder, tmp_path)


def test_shards_with_names_of_a_browser_are_found(tmp_path):
    folder = tiny(tmp_path)
    (folder / "model.safetensors").rename(folder / "model (1).safetensors")
    names = load_file(folder / "model (1).safetensors")
    index = {"weight_map": dict.fromkeys(names, "model (1).safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    compressed(folder, tmp_path)


def test_a_tokenizer_that_nobody_can_read_is_no_fault_of_the_recipe(tmp_path):
    folder = tiny(tmp_path)
    (folder / "tokenizer.json").write_text("{broken")
    (folder / "tokenizer_config.json").write_text("{}")
    out, scratch = tmp_path / "out", tmp_path / "scratch"
    scratch.mkdir()
    finished = compress_and_load(
        SourceModel(folder=folder, name="tiny"), resolve("int8"), out, None, scratch, Silent(),
        resume=False, device="cpu",
    )  # fmt: skip
    assert finished.load_check.logits < 0.03


def test_a_tokenizer_that_reads_otherwise_without_its_code_is_refused(tmp_path):
    """transformers takes another class where auto_map is gone, though it would not have run its code."""
    folder = save_tiny(tmp_path / "model", "qwen2", torch.bfloat16, vocabulary=500)
    metaspace_tokenizer(folder, builtin_text().calibration[:100_000])
    edit(
        folder / "tokenizer_config.json",
        tokenizer_class="TokenizersBackend",
        auto_map={"AutoTokenizer": ["tokenization_x.X", None]},
    )
    with pytest.raises(TokenizerError, match=r"names code \(auto_map\).*reads text otherwise"):
        compressed(folder, tmp_path)
    assert not (tmp_path / "out").exists()


def leave_layers(folder, count):
    edit(folder / "config.json", num_hidden_layers=count, layer_types=None)


def break_json(folder):
    file = folder / "config.json"
    file.write_text(file.read_text().replace('"vocab_size":', '"vocab_size"'))


def point_to_lfs(folder):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    (folder / "model.safetensors").write_text(pointer)


def leave_stale_file(folder):
    weights = load_file(folder / "model.safetensors")
    shard = "model-00001-of-00001.safetensors"
    save_file(weights, folder / shard, metadata={"format": "pt"})
    index = {"weight_map": dict.fromkeys(weights, shard)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    rewrite(folder, without("model.norm.weight"))


MISTAKES = {
    "fewer layers": (lambda folder: leave_layers(folder, 2), r"layers\.2.*there are 2 layers \(num_hidden"),
    "more layers": (lambda folder: leave_layers(folder, 9), r"num_hidden_layers 9.*files are missing"),
    "a comma": (break_json, r"config\.json is not valid JSON: .*\(line \d+, column \d+\)"),
    "lfs": (point_to_lfs, r"model\.safetensors is a Git LFS pointer.*git lfs pull"),
    "pads": (
        lambda folder: edit(folder / "config.json", pad_token_id=VOCABULARY),
        r"pad_token_id \d+ is no row.*pad_token_id to null",
    ),
    "a number as text": (
        lambda folder: edit(folder / "config.json", rms_norm_eps="1e-5"),
        r"cannot build a model from this config\.json: .*rms_norm_eps.*1e-5",
    ),
    "an unknown activation": (
        lambda folder: edit(folder / "config.json", hidden_act="swishglu"),
        r"hidden_act 'swishglu' is none that it knows",
    ),
    "utf-16": (
        lambda folder: (folder / "config.json").write_bytes(
            (folder / "config.json").read_text().encode("utf-16")
        ),
        r"config\.json is not UTF-8 text; save it as UTF-8",
    ),
    "a list of tokens": (
        lambda folder: (folder / "added_tokens.json").write_text("[]"),
        r"added_tokens\.json is not a JSON object",
    ),
    "a template in latin-1": (
        lambda folder: (folder / "chat_template.jinja").write_bytes("é".encode("latin-1")),
        r"chat_template\.jinja is not UTF-8",
    ),
    "stale": (leave_stale_file, r"lack 'model\.norm\.weight'.*remove the one that is left over"),
    "tokenizer": (
        lambda folder: [path.unlink() for path in folder.glob("tokenizer*")],
        r"has no tokenizer; put the files of its base model",
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_with_its_place_and_remedy_before_any_work(tmp_path, mistake):
    folder = tiny(tmp_path)
    make, words = MISTAKES[mistake]
    make(folder)
    with pytest.raises(SpqError, match=words):
        compress_and_measure(
            SourceModel(folder=folder, name="tiny"), resolve("int8"), tmp_path / "out",
            texts={"builtin": builtin_text(), "wikitext2": builtin_text()},
            evaluation=EvaluationSettings(perplexity=("builtin",), limit=1, length=64),
            scratch=tmp_path, progress=Silent(),
        )  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_terms_in_a_folder_of_their_own_travel_too(tmp_path):
    folder = tiny(tmp_path)
    (folder / "LICENSES").mkdir()
    for name in ("LICENSES/Apache-2.0.txt", "ACCEPTABLE_USE.txt", "acceptable-use-policy.md"):
        (folder / name).write_text("terms")
    (folder / "LICENSES" / "run.py").write_text("code")
    compressed(folder, tmp_path)
    carried = {
        path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*")
    }
    assert {"LICENSES/Apache-2.0.txt", "ACCEPTABLE_USE.txt", "acceptable-use-policy.md"} <= carried
    assert "LICENSES/run.py" not in carried


def test_a_link_to_a_file_outside_is_refused_before_it_is_read(tmp_path):
    folder = tiny(tmp_path)
    outside = tmp_path / "outside.json"
    outside.write_text("not an index")
    (folder / "model.safetensors.index.json").symlink_to(outside)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UnsafeModelError, match=r"index\.json is a link to a file outside"):
        refuse_links_outside(folder, [])


def test_an_index_without_metadata_is_read_though_transformers_would_not(tmp_path):
    folder = tiny(tmp_path)
    weights = load_file(folder / "model.safetensors")
    shard = "model-00001-of-00001.safetensors"
    (folder / "model.safetensors").rename(folder / shard)
    index = {"weight_map": dict.fromkeys(weights, shard)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with clean_copy(SourceModel(folder=folder, name="tiny")) as copy:
        compressed(folder, tmp_path)
        found = measured(copy.folder, tmp_path / "out").models
    assert found["out"].quality["builtin"]["perplexity"] > 1


@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_a_model_with_few_positions_is_measured_on_what_fits(tmp_path, family):
    folder = save_tiny(tmp_path / "model", family, positions=48)
    settings = EvaluationSettings(perplexity=("builtin",), limit=1, length=16, trials=1)
    found = measure(
        {"model": folder}, {"builtin": builtin_text()}, settings, Silent(), reference=None
    )
    assert found.models["model"].throughput.decode.median > 0
    settings = found.settings
    assert settings["prompt_tokens"] + settings["new_tokens"] == 48
    with pytest.raises(EvaluationError, match="48 positions, windows of 64 tokens do not fit"):
        measured(folder)

"""The ways people load an artifact, and what they put on top of it."""

import pickle

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from spq_core.artifact.adapters import lora_config
from spq_core.compression.compress import SourceModel, compress
from spq_core.data.texts import builtin_text
from spq_core.errors import ArtifactError
from spq_core.recipe.catalog import resolve
from tests.hub_server import stub_hub
from tests.models import save_tiny, some_ids
from tests.spq_core.compression.test_compress import relative_difference

SHORT = {"dataset": "wikitext2", "form": "windows", "samples": 2, "length": 64}
KINDS = {
    "int8": {"extends": "int8"},
    "balanced": {"extends": "balanced", "calibration": SHORT},
    "gptq-4": {"extends": "gptq-4", "calibration": SHORT},
}


@pytest.fixture(scope="module", params=KINDS)
def artifact(tmp_path_factory, request):
    folder = tmp_path_factory.mktemp("loading")
    source = save_tiny(folder / "source", "llama", torch.bfloat16, hidden=192, vocabulary=512)
    compress(
        SourceModel(folder=source, name="tiny"), resolve(KINDS[request.param]), folder / "out",
        text=builtin_text(),
    )  # fmt: skip
    return folder / "out"


@pytest.fixture(scope="module")
def logits(artifact):
    model = AutoModelForCausalLM.from_pretrained(artifact, dtype=torch.float32)
    with torch.no_grad():
        return model(some_ids()).logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_activations_of_every_dtype(artifact, logits, dtype):
    model = AutoModelForCausalLM.from_pretrained(artifact, dtype=dtype)
    with torch.no_grad():
        found = model(some_ids()).logits
    assert found.dtype == dtype
    assert relative_difference(found.float(), logits) < 0.05


@pytest.mark.parametrize("device_map", ["cpu", "auto", {"": "cpu"}])
def test_with_a_device_map(artifact, logits, device_map):
    model = AutoModelForCausalLM.from_pretrained(
        artifact, dtype=torch.float32, device_map=device_map
    )
    with torch.no_grad():
        assert torch.equal(model(some_ids()).logits.cpu(), logits)


@pytest.fixture(scope="session")
def hub():
    """One for all: clients in this process remember the first endpoint they talked to."""
    with stub_hub() as running, pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.ENDPOINT", running.url)
        patch.setattr(
            "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
            running.url + "/{repo_id}/resolve/{revision}/{filename}",
        )
        yield running


def test_from_a_hub_id(artifact, logits, tmp_path, hub):
    name = f"org/{artifact.parent.name}"
    hub.add_model(name, artifact)
    model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32, cache_dir=tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(name, cache_dir=tmp_path)
    assert any(f"{name}/resolve" in path for _, path in hub.requests)
    with torch.no_grad():
        assert torch.equal(model(some_ids()).logits, logits)
    assert tokenizer("abc")["input_ids"]


def test_a_loaded_model_can_be_copied_as_processes_copy_it(artifact, logits):
    model = AutoModelForCausalLM.from_pretrained(artifact, dtype=torch.float32)
    copied = pickle.loads(pickle.dumps(model))
    with torch.no_grad():
        assert torch.equal(copied(some_ids()).logits, logits)


def test_generating_with_a_static_cache_says_the_same(artifact):
    model = AutoModelForCausalLM.from_pretrained(artifact, dtype=torch.float32)
    prompt = some_ids(6)
    settings = {"max_new_tokens": 8, "do_sample": False, "attention_mask": torch.ones_like(prompt)}
    usual = model.generate(prompt, **settings)
    assert torch.equal(model.generate(prompt, cache_implementation="static", **settings), usual)


def test_a_batch_computes_what_its_rows_do(artifact):
    model = AutoModelForCausalLM.from_pretrained(artifact, dtype=torch.float32)
    rows = torch.cat([some_ids(5) + shift for shift in range(32)])
    with torch.no_grad():
        together = model(rows).logits
        alone = torch.cat([model(row[None]).logits for row in rows])
    assert relative_difference(together, alone) < 0.02


def test_the_whole_model_compiles_as_one_graph(artifact):
    model = AutoModelForCausalLM.from_pretrained(artifact, dtype=torch.float32)
    compiled = torch.compile(model.forward, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        expected = model(some_ids(), use_cache=False).logits
        assert relative_difference(compiled(some_ids(), use_cache=False).logits, expected) < 1e-4


@pytest.mark.filterwarnings("ignore::FutureWarning")  # PEFT's use of transformers
def test_adapters_train_are_saved_and_take_effect_again(artifact, tmp_path):
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(artifact, dtype=torch.float32)
    settings = lora_config(r=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(base, settings)
    ids = some_ids()
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=2e-2)
    losses = []
    for _ in range(8):
        loss = model(ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]
    model.save_pretrained(tmp_path / "adapter")
    fresh = AutoModelForCausalLM.from_pretrained(artifact, dtype=torch.float32)
    again = PeftModel.from_pretrained(fresh, tmp_path / "adapter", config=settings)
    with torch.no_grad():
        assert torch.equal(again(ids).logits, model(ids).logits)
    with pytest.raises(ArtifactError, match="merge"):
        model.merge_and_unload()


def test_peft_without_our_settings_refuses_clearly(artifact):
    model = AutoModelForCausalLM.from_pretrained(artifact, dtype=torch.float32)
    with pytest.raises(ValueError, match="Int[48]Linear.* is not supported"):
        get_peft_model(model, LoraConfig(target_modules=["q_proj"]))

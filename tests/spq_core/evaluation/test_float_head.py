import pytest
import torch
from transformers import AutoModelForCausalLM

from spq_core.artifact.read import load_model
from spq_core.compression.compress import compress
from spq_core.data.texts import builtin_text
from spq_core.evaluation import float_head
from spq_core.evaluation.float_head import widen_head
from spq_core.models.clean_copy import SourceModel
from spq_core.recipe.catalog import resolve
from tests.model_types.toys import save_toy
from tests.models import save_tiny, some_ids


@pytest.mark.parametrize("recipe", [None, "int8"])
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_narrow_model_gives_wide_logits(tmp_path, monkeypatch, recipe, family):
    """As if the states it computes went through the head in float32; the rest of it stays as it is."""
    monkeypatch.setattr(float_head, "ROWS_AT_ONCE", 100)
    folder = save_tiny(tmp_path / "source", family, torch.bfloat16)
    if recipe is not None:
        source = SourceModel(folder=folder, name="tiny")
        compress(source, resolve(recipe), tmp_path / "out", text=builtin_text())
        folder = tmp_path / "out"
    narrow, exact = load_model(folder, torch.bfloat16), load_model(folder, torch.float32)
    states = []
    narrow.get_output_embeddings().register_forward_pre_hook(
        lambda _module, arguments: states.append(arguments[0])
    )
    with torch.no_grad():
        coarse = narrow(some_ids(24)).logits
        wanted = exact.get_output_embeddings()(states[0].float())
        cap = getattr(exact.config, "final_logit_softcapping", None)
        wanted = wanted if cap is None else (wanted / cap).tanh() * cap
        widen_head(narrow)
        found = narrow(some_ids(24)).logits
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert float((coarse.float() - wanted).norm()) > 10 * float((found - wanted).norm())
    assert narrow.get_input_embeddings()(some_ids(4)).dtype == torch.bfloat16


def test_a_model_that_asks_its_head_for_a_dtype_is_measured_too(tmp_path):
    source = save_toy("mamba", tmp_path / "source")
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    widen_head(model)
    with torch.no_grad():
        assert model(some_ids()).logits.dtype == torch.float32

import pytest
import torch
from transformers import AutoModelForCausalLM

from spq_core.models.checkpoint import open_checkpoint
from spq_core.models.skeleton import load_skeleton
from spq_core.progress import Silent
from spq_core.streaming.sensitivity import measure_sensitivity
from tests.models import VOCABULARY, save_tiny


def measured(folder, tmp_path, windows):
    found = {}

    def visit(index, layer, statistics):
        found[index] = statistics

    skeleton, checkpoint = load_skeleton(folder), open_checkpoint(folder)
    rest = measure_sensitivity(skeleton, checkpoint, windows, tmp_path / "scratch", Silent(), visit)
    return found, rest


@pytest.fixture
def windows():
    return torch.randint(3, VOCABULARY, (24, 64), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("family", ["llama", "opt", "gemma3", "gpt2"])
@pytest.mark.parametrize("where", [0, 2])
def test_the_expected_loss_of_an_error_is_the_kl_it_causes(tmp_path, windows, family, where):
    folder = save_tiny(tmp_path / "source", family)
    found, _ = measured(folder, tmp_path, windows)
    assert not list((tmp_path / "scratch").iterdir())
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        before = model(windows).logits.log_softmax(-1)
    layers = next(
        module for module in model.modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) == 3
    )  # fmt: skip
    generator = torch.Generator().manual_seed(1)
    family_names = load_skeleton(folder).family
    # Behind attention, errors of different tokens meet in one sum, which K-FAC leaves out; in random
    # models, whose attention is even, that is most of it. So the oracle is for the MLP.
    for name in (*family_names.mlp_in, family_names.mlp_out):
        statistics = found[where].matrices[name]
        weight = layers[where].get_submodule(name).weight
        ours = weight.T if type(layers[where].get_submodule(name)).__name__ == "Conv1D" else weight
        noise = torch.randn(ours.shape, generator=generator) * ours.detach().std() * 0.1
        energy = ((noise @ statistics.inputs.second_moment) * noise).sum(dim=1)
        expected = 0.5 * float((statistics.output_weights * energy).sum())
        with torch.no_grad():
            original = weight.clone()
            ours += noise
            after = model(windows).logits.log_softmax(-1)
            weight.copy_(original)
        kl = float((before.exp() * (before - after)).sum(-1).mean())
        assert 0.4 < kl / expected < 2.5, (name, kl, expected)


def test_probabilities_are_those_of_the_model(tmp_path, windows):
    folder = save_tiny(tmp_path / "source")
    _, rest = measured(folder, tmp_path, windows)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    seen = []
    model.lm_head.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        mean = model(windows).logits.softmax(-1).mean(dim=(0, 1))
    torch.testing.assert_close(rest.probabilities, mean, rtol=1e-3, atol=1e-6)
    rows = seen[0].flatten(0, 1)
    torch.testing.assert_close(rest.head_inputs, rows.T @ rows / len(rows), rtol=1e-3, atol=1e-4)

import torch
from transformers import AutoModelForCausalLM

from spq_core.methods.pruning.neurons import cut_mlp, strongest_neurons
from spq_core.models.structure import match_family
from tests.models import save_tiny, some_ids


def test_keeps_the_strongest_in_ascending_order():
    scores = torch.tensor([5.0, 1.0, 4.0, 2.0, 3.0])
    assert strongest_neurons(scores, 0.4).tolist() == [0, 2, 4]
    assert strongest_neurons(scores, 0.99).tolist() == [0]


def test_removed_equals_masked(tmp_path):
    """Cutting neurons gives what zeroing their outputs gives, for gated and biased MLPs."""
    for family_name in ("llama-untied", "opt"):
        model = AutoModelForCausalLM.from_pretrained(save_tiny(tmp_path / family_name, family_name))
        model.eval()
        base = model.model.decoder if family_name == "opt" else model.model
        layer = base.layers[1]
        family = match_family([layer])
        kept = torch.arange(0, 160, 3)
        mask = torch.zeros(160)
        mask[kept] = 1.0
        handle = layer.get_submodule(family.mlp_out).register_forward_pre_hook(
            lambda _module, args, mask=mask: (args[0] * mask,)
        )
        with torch.no_grad():
            masked = model(some_ids()).logits
            handle.remove()
            cut_mlp(layer, family, kept)
            removed = model(some_ids()).logits
        torch.testing.assert_close(removed, masked, rtol=1e-5, atol=1e-5)

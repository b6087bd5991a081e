import pytest
import torch
from transformers import AutoModelForCausalLM

from spq_core.errors import UnsupportedModelError
from spq_core.models.blocks import blocked_source, load_layer, load_rest, open_model
from spq_core.models.checkpoint import open_checkpoint
from spq_core.models.skeleton import load_skeleton
from spq_core.streaming.stream import begin_stream, final_states
from tests.model_types.toys import save_toy
from tests.models import FAMILIES, save_tiny, some_ids


@pytest.mark.parametrize("family", FAMILIES)
def test_streamed_layers_compute_what_the_whole_model_does(tmp_path, family):
    folder = save_tiny(tmp_path / family, family)
    skeleton, checkpoint = load_skeleton(folder), open_checkpoint(folder)
    windows = torch.cat([some_ids(24), some_ids(24).flip(1)])
    stream = begin_stream(skeleton, load_rest(skeleton, checkpoint), windows)
    model = AutoModelForCausalLM.from_pretrained(folder)
    inputs = []
    for index in range(skeleton.n_layers):
        layer = model.get_submodule(skeleton.layer_path(index))
        layer.register_forward_pre_hook(lambda _module, args: inputs.append(args[0]))
    with torch.no_grad():
        for window in windows:
            model(window[None])
    expected = {
        (index, sample): inputs[sample * 3 + index] for index in range(3) for sample in range(2)
    }
    for index in range(skeleton.n_layers):
        for sample, states in enumerate(stream.hidden):
            torch.testing.assert_close(states, expected[index, sample], rtol=1e-4, atol=1e-5)
        stream.advance(index, load_layer(skeleton, checkpoint, index))


def test_what_stops_a_model_by_itself_is_what_is_said(tmp_path):
    """Two ways of answering are tried; if both fail, the first failure is the model's own."""
    folder = save_tiny(tmp_path)
    skeleton, checkpoint = load_skeleton(folder), open_checkpoint(folder)
    rest = load_rest(skeleton, checkpoint)

    def broken(*_arguments, **_named):
        raise ValueError("no such rotation")

    rest.base_model.rotary_emb.forward = broken
    with pytest.raises(ValueError, match="no such rotation"):
        begin_stream(skeleton, rest, some_ids())


@pytest.mark.parametrize("model_type", ["gemma4_text", "qwen3_5_text", "lfm2"])
def test_every_sample_gets_what_is_its_own(tmp_path, model_type):
    """Embeddings for each layer; beside them, layers of several kinds with masks of their own."""
    rows = torch.cat([some_ids(), some_ids().flip(1) + 1]) % 250 + 3
    toy = save_toy(model_type, tmp_path / "toy")
    model = AutoModelForCausalLM.from_pretrained(toy, dtype=torch.float32).eval()
    source = tmp_path / "source"  # embeddings in 16 bits would be rounded at another place
    model.save_pretrained(source)
    with torch.no_grad():
        wanted = model.base_model(input_ids=rows, use_cache=False).last_hidden_state
    found = final_states(blocked_source(*open_model(source)), rows)
    torch.testing.assert_close(torch.stack(found), wanted, rtol=1e-3, atol=1e-4)


def test_layers_that_text_does_not_reach_are_refused(tmp_path):
    folder = save_tiny(tmp_path)
    skeleton, checkpoint = load_skeleton(folder), open_checkpoint(folder)
    rest = load_rest(skeleton, checkpoint)
    model = rest.base_model
    forward = model.forward

    def without_the_second(*arguments, **named):
        layers, model.layers = model.layers, model.layers[:1]
        try:
            return forward(*arguments, **named)
        finally:
            model.layers = layers

    model.forward = without_the_second
    with pytest.raises(UnsupportedModelError, match="decoder layers 1, 2 take no part"):
        begin_stream(skeleton, rest, some_ids())

import pytest
import torch
from transformers import AutoModelForCausalLM

from spq_core.models.blocks import load_layer, load_rest
from spq_core.models.checkpoint import open_checkpoint
from spq_core.models.skeleton import load_skeleton
from spq_core.streaming.stream import begin_stream
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

import pytest
import torch

from spq_core.models.blocks import load_layer, load_rest
from spq_core.models.checkpoint import open_checkpoint
from spq_core.models.skeleton import load_skeleton
from spq_core.streaming import settled as settled_module
from spq_core.streaming.inputs import LayerInputs
from spq_core.streaming.settled import Settled, SettledInput
from spq_core.streaming.stream import begin_stream
from tests.models import FAMILIES, save_tiny, some_ids

ATTENTION, MLP_IN, MLP_OUT = 0, -2, -1
"""Groups of matrices that share an input, in the order data meets them."""


def at_a_layer(folder):
    """A layer, its samples, a function that makes fresh inputs, and one that counts attention's calls."""
    skeleton, checkpoint = load_skeleton(folder), open_checkpoint(folder)
    windows = torch.cat([some_ids(24), some_ids(24).flip(1)])
    stream = begin_stream(skeleton, load_rest(skeleton, checkpoint), windows)
    layer, family = load_layer(skeleton, checkpoint, 0), skeleton.family
    calls = []
    attention = layer.get_submodule(family.attention_module)
    attention.register_forward_hook(lambda *_: calls.append(1))

    def inputs(*, remembering):
        settled = Settled(layer, family.attention_module, (*family.mlp_in, family.mlp_out))

        def run(batch):
            return stream.through_layer(0, layer, batch)

        batches = [range(1), range(1, 2)]
        known = {}
        if remembering:
            received = SettledInput(layer, family.mlp_out, family.mlp_in)
            known = {"settled": settled, "settled_input": received}
        return LayerInputs(layer, family.steps, run, batches, **known)

    computed = []
    compute = type(attention).forward

    def counting(self, *positional, **named):
        computed.append(1)
        return compute(self, *positional, **named)

    return layer, family, inputs, computed, counting, type(attention)


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_is_computed_once_and_everything_is_as_if_it_were_not(
    tmp_path, monkeypatch, family
):
    layer, names, inputs, computed, counting, kind = at_a_layer(save_tiny(tmp_path / "m", family))
    monkeypatch.setattr(kind, "forward", counting)
    plain, remembering = inputs(remembering=False), inputs(remembering=True)
    with torch.no_grad():
        wanted = [
            *(plain.moments(group[0]).second_moment for group in names.shared_inputs),
            *(plain.forward(batch) for batch in plain.batches),
        ]
        before = len(computed)
        found = [
            *(remembering.moments(group[0]).second_moment for group in names.shared_inputs),
            *(remembering.forward(batch) for batch in remembering.batches),
        ]
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)
    assert len(computed) - before < before
    assert "forward" not in vars(layer.get_submodule(names.attention_module))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("room", [1 << 30, 0])
def test_the_mlp_is_computed_once_after_its_last_matrix_was_measured_if_there_is_room(
    tmp_path, monkeypatch, family, room
):
    monkeypatch.setattr(settled_module, "KEPT_BYTES", room)
    layer, names, inputs, *_ = at_a_layer(save_tiny(tmp_path / "m", family))
    remembering, plain = inputs(remembering=True), inputs(remembering=False)
    first, last = layer.get_submodule(names.mlp_in[0]), layer.get_submodule(names.mlp_out)
    multiplied, kind, compute = [], type(first), type(first).forward

    def counting(self, x):
        if self is first:
            multiplied.append(1)
        return compute(self, x)

    monkeypatch.setattr(kind, "forward", counting)
    with torch.no_grad():
        remembering.moments(names.mlp_out)
        multiplied.clear()
        last.weight.mul_(1.5)  # as a stage changes it right after it was measured
        found = [remembering.forward(batch) for batch in remembering.batches]
        assert len(multiplied) == (0 if room else len(found))
        wanted = [plain.forward(batch) for batch in plain.batches]
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)
    assert "forward" not in vars(last)


def change_in_place(matrix, layer, name):
    del layer, name
    with torch.no_grad():
        matrix.weight.mul_(1.5)


def change_data(matrix, layer, name):
    del layer, name
    matrix.weight.data = matrix.weight.data * 1.5


def replace(matrix, layer, name):
    other = type(matrix)(matrix.in_features, matrix.out_features, bias=matrix.bias is not None)
    layer.set_submodule(name, other)


@pytest.mark.parametrize("change", [change_in_place, change_data, replace])
@pytest.mark.parametrize("where", [ATTENTION, MLP_IN, MLP_OUT])
def test_a_changed_matrix_is_seen_whoever_changed_it(tmp_path, change, where):
    layer, names, inputs, *_ = at_a_layer(save_tiny(tmp_path / "model"))
    remembering = inputs(remembering=True)
    with torch.no_grad():
        remembering.moments(names.mlp_out)
        first = remembering.forward(range(1))
        name = names.shared_inputs[where][0]
        change(layer.get_submodule(name), layer, name)
        second_moment = remembering.forward(range(1))
        torch.testing.assert_close(second_moment, inputs(remembering=False).forward(range(1)))
    assert not torch.allclose(first, second_moment)

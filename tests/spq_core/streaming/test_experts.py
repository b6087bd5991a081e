import torch
from torch import nn

from spq_core.models.blocks import load_layer, open_model
from spq_core.models.experts import modules_of_experts
from spq_core.models.family import steps_in
from spq_core.streaming.experts import blended, moments_of_experts, weighed_experts
from spq_core.streaming.moments import RunningMoments
from spq_core.streaming.order import steps_of
from tests.model_types.toys import save_toy


def sums(rows):
    found = RunningMoments(rows.shape[1], rows.device)
    found.add(rows)
    return found


def second(rows):
    return rows.T @ rows / len(rows)


def test_missing_tokens_are_those_of_the_whole_layer():
    routed, everything = torch.randn(5, 8), torch.randn(100, 8)
    found = blended(sums(routed), sums(everything))
    torch.testing.assert_close(
        found.second_moment, (5 * second(routed) + 3 * second(everything)) / 8
    )
    torch.testing.assert_close(found.mean, (5 * routed.mean(0) + 3 * everything.mean(0)) / 8)
    assert found.tokens == 8
    torch.testing.assert_close(blended(None, sums(everything)).second_moment, second(everything))
    torch.testing.assert_close(blended(sums(routed), None).second_moment, second(routed))


def moe_layer(tmp_path):
    skeleton, checkpoint = open_model(save_toy("mixtral", tmp_path / "source"))
    layer = load_layer(skeleton, checkpoint, 0)
    ((path, experts),) = modules_of_experts(layer)
    present = {name for name, _ in layer.named_modules()}
    steps = [step for step in steps_in(skeleton.family, present) if len(step) > 1]
    return layer, path, experts, steps


def test_experts_are_measured_on_the_tokens_that_reach_them(tmp_path):
    layer, path, experts, (ins, outs) = moe_layer(tmp_path)
    states = torch.randn(600, 96)
    chosen = torch.where(
        torch.arange(600)[:, None] < 300, torch.tensor([0, 1]), torch.tensor([1, 2])
    )
    chosen[:7, 0] = 3  # which sees seven tokens, and 4 and 5 none

    def run():
        experts(states, chosen, torch.ones(600, 2))

    found = moments_of_experts(layer, ins, run)
    by_expert = {int(group[0].split(".")[-2]): found[group].second_moment for group in ins}
    torch.testing.assert_close(by_expert[0], second(states[7:300]), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(by_expert[2], second(states[300:]), rtol=1e-4, atol=1e-4)
    few = (7 * second(states[:7]) + 89 * second(states)) / 96
    torch.testing.assert_close(by_expert[3], few, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(by_expert[5], second(states), rtol=1e-4, atol=1e-4)
    behind = moments_of_experts(layer, outs, run)
    fifth = experts.get_submodule("5")
    gate, up = fifth.gate_up_proj(states).chunk(2, -1)
    inner = nn.functional.silu(gate) * up
    (group,) = (group for group in outs if group[0] == f"{path}.5.down_proj")
    torch.testing.assert_close(behind[group].second_moment, second(inner), rtol=1e-4, atol=1e-5)
    assert experts.pooled is None


def test_outputs_count_as_often_as_there_are_any(tmp_path):
    layer, _, experts, (ins, _) = moe_layer(tmp_path)
    states = torch.randn(400, 96)
    chosen = torch.zeros(400, 2, dtype=torch.int64)
    chosen[:, 1] = 1
    seen = {group: sums(states) for group in ins[:2]}
    squares = {group[0]: torch.full((8,), 400.0 * (1 + at)) for at, group in enumerate(ins[:2])}

    def run():
        experts(states, chosen, torch.ones(400, 2))

    found = weighed_experts(layer, ins[:3], seen, squares, 400, run)
    first, second_one, unseen = (found[group[0]][1] for group in ins[:3])
    torch.testing.assert_close(first, torch.full((8,), 1.0))
    torch.testing.assert_close(second_one, torch.full((8,), 2.0))
    torch.testing.assert_close(unseen, torch.full((8,), 1.5 / 400))  # as if one token had chosen it


class Crossing(nn.Module):
    """Names in another order than data meets them; two inputs of one matrix group; one matrix never called."""

    def __init__(self):
        super().__init__()
        self.last, self.b, self.a, self.never = (nn.Linear(8, 8) for _ in range(4))
        self.router = nn.Linear(8, 2)

    def forward(self, x):
        first = self.a(x)
        inner = first * self.b(x)
        return self.last(inner.add_(1))


def test_matrices_are_met_in_the_order_of_data():
    from spq_core.models.composed import family_of_parts

    block = Crossing()
    shapes = {n: (m.out_features, m.in_features) for n, m in block.named_modules() if n}
    family = family_of_parts([shapes | dict.fromkeys(("last", "a", "b", "never"), (64, 64))], ())
    assert family.others == ("a", "b", "last", "never")
    steps = steps_of(family, block, lambda: block(torch.randn(3, 8)))
    assert steps == ((("a", "b"),), (("last",),))


class InPlace(Crossing):
    """The same memory, but no longer the same states."""

    def forward(self, x):
        y = x.clone()
        first = self.a(y)
        y.add_(first)
        return self.last(self.b(y))


def test_states_that_were_added_to_are_other_states():
    from spq_core.models.composed import family_of_parts

    block = InPlace()
    family = family_of_parts([dict.fromkeys(("last", "a", "b"), (64, 64))], ())
    with torch.no_grad():
        steps = steps_of(family, block, lambda: block(torch.randn(3, 8)))
    assert steps == ((("a",),), (("b",),), (("last",),))

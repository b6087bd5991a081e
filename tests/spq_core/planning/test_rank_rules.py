"""Ranks by published rules: each does what its paper says, at the parameters asked for."""

import math

import numpy as np
import pytest

from spq_core.planning.rank_rules import SPREAD, parameters, ranks_for
from spq_core.planning.structure import SingularDirections

RULES = ("uniform", "pgsvd", "mgaa", "theoretical")
TOKENS = 1000.0


def matrix(n_out, n_in, decay, size=1.0):
    """Squared singular values fall by `decay`; inputs are white."""
    energy = size * decay ** np.arange(min(n_out, n_in), dtype=float)
    return SingularDirections(
        tuple(energy.tolist()), n_out, n_in, 2.0,
        weight_energy=tuple(energy.tolist()), output_energy=tuple((TOKENS * energy).tolist()),
    )  # fmt: skip


@pytest.fixture
def model():
    """Two layers of an attention and an MLP; what is deeper or narrower falls faster."""
    found, importance = {}, {}
    for layer, decay in ((0, 0.99), (1, 0.95)):
        for half, name, shape in (
            ("self_attn", "q_proj", (64, 64)), ("self_attn", "k_proj", (32, 64)),
            ("mlp", "up_proj", (128, 64)), ("mlp", "down_proj", (64, 128)),
        ):  # fmt: skip
            full = f"model.layers.{layer}.{half}.{name}"
            found[full] = matrix(*shape, decay, size=10.0)
            importance[full] = {"self_attn": 0.1, "mlp": 0.2}[half] + 0.05 * layer
    return found, importance


def share(model, name, ranks):
    one = model[name]
    return parameters({name: one}, ranks) / (one.n_out * one.n_in)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kept", [0.3, 0.6, 0.9])
def test_the_parameters_asked_for_are_used_and_not_exceeded(model, rule, kept):
    matrices, importance = model
    wanted = kept * parameters(matrices, {})
    ranks = ranks_for(rule, matrices, wanted, importance)
    used = parameters(matrices, ranks)
    # Ties of equal matrices move together, and none can be finer than a rank.
    assert 0.93 * wanted < used <= wanted
    for name, rank in ranks.items():
        one = matrices[name]
        assert rank >= 1
        assert rank * (one.n_out + one.n_in) < one.n_out * one.n_in


@pytest.mark.parametrize("rule", RULES)
def test_whatever_fits_stays_whole(model, rule):
    matrices, importance = model
    assert ranks_for(rule, matrices, parameters(matrices, {}), importance) == {}


def test_uniform_gives_every_matrix_the_same_share(model):
    matrices, importance = model
    ranks = ranks_for("uniform", matrices, 0.6 * parameters(matrices, {}), importance)
    shares = [share(matrices, name, ranks) for name in matrices]
    assert max(shares) - min(shares) < 0.05


def test_pgsvd_leaves_every_matrix_the_same_relative_error(model):
    matrices, importance = model
    ranks = ranks_for("pgsvd", matrices, 0.5 * parameters(matrices, {}), importance)
    errors = {
        name: sum(matrices[name].weight_energy[rank:]) / sum(matrices[name].weight_energy)
        for name, rank in ranks.items()
    }
    one_rank = {name: matrices[name].weight_energy[ranks[name] - 1] / sum(matrices[name].weight_energy) for name in ranks}  # fmt: skip
    for name, error in errors.items():
        assert error <= max(errors.values()) < error + one_rank[name] + 1e-9
    assert share(matrices, "model.layers.1.mlp.up_proj", ranks) < share(
        matrices, "model.layers.0.mlp.up_proj", ranks
    )


def test_mgaa_keeps_more_of_what_turns_its_input_more(model):
    matrices, importance = model
    ranks = ranks_for("mgaa", matrices, 0.6 * parameters(matrices, {}), importance)

    def block(layer, half):
        members = {name: one for name, one in matrices.items() if f"{layer}.{half}" in name}
        return parameters(members, ranks) / parameters(members, {})

    least, most = block(0, "self_attn"), block(1, "mlp")
    assert least < block(1, "self_attn") < block(0, "mlp") < most
    assert most - least == pytest.approx(SPREAD, abs=0.04)


def test_svd_llm_v2_takes_less_where_truncation_loses_more(model):
    matrices, importance = model
    kept = 0.6
    ranks = ranks_for("theoretical", matrices, kept * parameters(matrices, {}), importance)
    flat, steep = (f"model.layers.{at}.mlp.up_proj" for at in (0, 1))
    assert share(matrices, flat, ranks) > share(matrices, steep, ranks)
    # Of one kind, what goes is in proportion to 1 / ln L, with L at the common share.
    common = int(kept * 128 * 64 / 192)
    logs = [
        math.log(math.sqrt(sum(matrices[name].output_energy[common:]))) for name in (flat, steep)
    ]
    gone = [1 - share(matrices, name, ranks) for name in (flat, steep)]
    assert gone[0] / gone[1] == pytest.approx(logs[1] / logs[0], rel=0.1)

"""What every stored form must be able to do, whichever forms there are."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from spq_core.formats.adapted.linear import AdaptedLayout
from spq_core.formats.conversion import stored_state, to_runtime
from spq_core.formats.deflated.linear import DeflatedEmbeddingLayout, DeflatedLayout
from spq_core.formats.dense.layout import DenseLayout
from spq_core.formats.ggml.coding import pack
from spq_core.formats.lattice.steps import Steps
from spq_core.formats.layer import CompressedEmbedding, CompressedLinear
from spq_core.formats.layouts import COMPOSED_FORMS, LAYOUTS, changed_layouts, parse_layouts
from spq_core.formats.low_rank.linear import LowRankLayout
from spq_core.formats.profiles.registry import PROFILES
from spq_core.formats.range_coded.coding import encode
from spq_core.formats.registry import MATRIX_FORMS
from spq_core.formats.slicing import bias_of, float_weight, keep_columns, keep_rows
from spq_core.methods.quantization.block_grid import choose_blocks
from tests.spq_core.formats.deflated.writing import deflate

EXTENDING = (Path(__file__).parents[3] / "docs/extending.md").read_text(encoding="utf-8")
N_IN, N_OUT = 64, 96
SIZES = {"n_in": N_IN, "n_out": N_OUT, "bias": True, "n": N_OUT, "dim": N_IN, "n_padded": N_IN}
OTHERS = {
    "scales": N_OUT,
    "bits": 4,
    "group_size": 32,
    "base": 0.01,
    "order": "columns",
    "states": 1,
    "type": "Q5_0",
}
EARLIER = {DeflatedLayout, DeflatedEmbeddingLayout}
"""Forms that are read, and written no more."""
LINEAR_FORMS = [form.linear for form in MATRIX_FORMS]


def example(kind, **sizes):
    """A layout of the kind; only its own fields are taken."""
    wanted = {**SIZES, **OTHERS, **sizes}
    if kind in COMPOSED_FORMS:
        return composed(kind)
    if "n_bytes" in kind.model_fields:
        wanted["n_bytes"] = len(coded_codes(kind, wanted["n_out"], wanted["n_in"]).packed)
    return kind(**{name: value for name, value in wanted.items() if name in kind.model_fields})


def composed(kind):
    if kind is AdaptedLayout:
        return AdaptedLayout(base=example(DenseLayout), rank=4)
    down, up = example(DenseLayout, n_out=8, bias=False), example(DenseLayout, n_in=8)
    return LowRankLayout(down=down, up=up)


def coded_codes(kind, n_out, n_in):
    generator = torch.Generator().manual_seed(3)
    codes = torch.randint(-9, 10, (n_out, n_in), generator=generator).char()
    rows = torch.randint(0, 40, (n_out,), generator=generator).byte()
    columns = torch.randint(0, 40, (n_in,), generator=generator).byte()
    return (deflate if kind in EARLIER else encode)(codes, Steps(0.01, rows, columns))


def filled(layout):
    """The layer with values that its form may hold."""
    layer = layout.build(torch.float32).to_empty(device="cpu")
    generator = torch.Generator().manual_seed(5)
    for name, parameter in layer.named_parameters():
        part = name.rpartition(".")[2]
        if part == "packed" and "n_bytes" in type(layout).model_fields:
            parameter.data = coded_codes(type(layout), N_OUT, N_IN).packed
        elif part == "scale":
            steps = torch.rand(parameter.shape, generator=generator) + 0.5
            parameter.data = steps.bfloat16().to(parameter.dtype) / 64
        elif part == "blocks":
            weight = torch.randn(N_OUT, N_IN, generator=generator) / 8
            kind = layout.block_type
            parameter.data = pack(kind, choose_blocks(weight, kind))
        elif part == "zero":
            parameter.data = torch.full_like(parameter, 8)
        elif parameter.is_floating_point():
            parameter.data = torch.randn(parameter.shape, generator=generator) / 8
        else:
            low, high = (-128, 128) if parameter.dtype == torch.int8 else (0, 256)
            parameter.data = torch.randint(low, high, parameter.shape, generator=generator).to(
                parameter.dtype
            )
    return layer


def linear_layouts():
    return [kind for kind in LAYOUTS if issubclass_linear(kind)]


def issubclass_linear(kind):
    return isinstance(example(kind).build(torch.float32), nn.Linear | CompressedLinear)


@pytest.mark.parametrize("kind", LAYOUTS)
def test_a_layout_survives_config_json_and_describes_what_it_builds(kind):
    layout = example(kind)
    document = json.loads(json.dumps({"layer": layout.model_dump()}))
    assert parse_layouts(document)["layer"] == layout
    block, plain = nn.Module(), nn.Module()
    block.layer, plain.layer = layout.build(torch.bfloat16), nn.Identity()
    assert all(parameter.is_meta for parameter in block.parameters())
    assert changed_layouts("", block, plain)["layer"] == layout


@pytest.mark.parametrize("kind", linear_layouts())
def test_a_linear_layer_multiplies_by_the_weight_it_says_it_has(kind):
    model = nn.Module()
    model.layer = filled(example(kind))
    stored_weight, stored_bias = float_weight(model.layer), bias_of(model.layer)
    to_runtime(model)
    weight = float_weight(model.layer)
    assert weight.shape == (N_OUT, N_IN)
    assert (model.layer.in_features, model.layer.out_features) == (N_IN, N_OUT)
    torch.testing.assert_close(weight, stored_weight)
    torch.testing.assert_close(float_weight(model.layer, slice(10, 20)), weight[10:20])
    x = torch.randn(100, N_IN, generator=torch.Generator().manual_seed(6))
    torch.testing.assert_close(model.layer(x), x @ weight.T + stored_bias, rtol=0.02, atol=0.05)


@pytest.mark.parametrize("kind", LAYOUTS)
def test_what_computes_goes_back_to_the_bytes_that_were_read(kind):
    layout, model = example(kind), nn.Module()
    model.layer = filled(layout)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    to_runtime(model)
    layouts = {"layer": layout.model_dump()}
    after = stored_state(model, layouts, {})
    after = dict(model.state_dict()) if after is None else after
    if kind in EARLIER:
        assert_same_in_another_form(layout, before, layouts, after)
        return
    assert layouts == {"layer": layout.model_dump()} or "n_bytes" in layouts["layer"]
    assert after.keys() == before.keys()
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor), name


def assert_same_in_another_form(layout, before, layouts, after):
    """What is written no more goes into its successor."""
    (successor,) = parse_layouts(layouts).values()
    assert successor.kind != layout.kind
    codes = []
    for one, state in ((layout, before), (successor, after)):
        holder = nn.Module()
        holder.layer = one.build(torch.float32).to_empty(device="cpu")
        holder.load_state_dict(state)
        to_runtime(holder)
        codes.append(holder.layer.state_dict())
    assert codes[0].keys() == codes[1].keys()
    for name, tensor in codes[0].items():
        assert torch.equal(codes[1][name], tensor), name


@pytest.mark.parametrize("kind", linear_layouts())
def test_a_form_is_cut_as_its_weight_is_or_says_that_it_is_not(kind):
    layer, kept = filled(example(kind)), torch.tensor([1, 5, 40])
    weight = float_weight(layer)
    try:
        rows, columns = keep_rows(layer, kept), keep_columns(layer, kept)
    except TypeError as refusal:
        assert "prune" in str(refusal)  # noqa: PT017 - a form that is not cut says so
        return
    torch.testing.assert_close(float_weight(rows), weight[kept])
    torch.testing.assert_close(bias_of(rows), bias_of(layer)[kept])
    torch.testing.assert_close(float_weight(columns), weight[:, kept])


@pytest.mark.parametrize("form", [form for form in MATRIX_FORMS if form.embedding is not None])
def test_a_tied_head_shares_the_embeddings_matrix_in_every_form(form):
    model = nn.Module()
    model.table = filled(example(form.embedding))
    assert isinstance(model.table, CompressedEmbedding)
    model.head = model.table.tied_head()
    shared = {f"head.{part}": f"table.{part}" for part in model.head.layout().shared_parts}
    assert set(shared) <= set(dict(model.named_parameters(remove_duplicate=False)))
    to_runtime(model)
    weight = float_weight(model.head)
    torch.testing.assert_close(model.table(torch.arange(N_OUT)), weight, rtol=1e-5, atol=1e-5)
    matrix = model.head.matrix
    assert getattr(model.head, matrix) is getattr(model.table, matrix)


@pytest.mark.parametrize("inner", LINEAR_FORMS)
def test_every_form_of_a_matrix_may_stand_within_another(inner):
    adapted = AdaptedLayout(base=example(inner), rank=4)
    assert parse_layouts({"a": adapted.model_dump()})["a"] == adapted
    model = nn.Module()
    model.layer = adapted.build(torch.float32)
    assert model.layer.layout() == adapted
    assert model.layer.layout().within() == {"base": example(inner)}


@pytest.mark.parametrize("kind", LAYOUTS)
def test_a_form_is_held_by_a_profile_and_documented(kind):
    name = kind.model_fields["kind"].default
    assert f"`{name}`" in EXTENDING
    if kind not in [form.embedding for form in MATRIX_FORMS]:
        assert any(name in profile.forms for profile in PROFILES)

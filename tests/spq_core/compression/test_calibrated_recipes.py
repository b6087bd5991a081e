"""Recipes that look at activations: what they promise, on tiny models of every family."""

import json
import os
import signal
from itertools import product

import pytest
import torch
from safetensors.torch import load_file, save_file

from spq_core.artifact.manifest import read_manifest, verify_files
from spq_core.artifact.read import load_artifact, load_model
from spq_core.compression.compress import SourceModel, compress
from spq_core.data.samples import unseen_windows
from spq_core.data.texts import builtin_text, held_out
from spq_core.errors import ArtifactError, NumericalError, RecipeError, TargetUnreachedError
from spq_core.formats.int4.linear import Int4Linear
from spq_core.formats.int8.linear import Int8Linear
from spq_core.formats.lattice.layers import CodedLinear
from spq_core.formats.layouts import parse_layouts
from spq_core.formats.low_rank.linear import LowRankLinear
from spq_core.formats.packed.linear import PackedLinear
from spq_core.models.weight_files import read_header, stored_bytes, weight_files
from spq_core.progress import Silent
from spq_core.recipe.catalog import resolve
from spq_core.recipe.document import parse_recipe
from tests import forked
from tests.marks import every
from tests.models import FAMILIES, save_tiny, some_ids
from tests.spq_core.compression.test_compress import dense_twin, relative_difference

WINDOWS = {"dataset": "builtin", "form": "windows", "samples": 6, "length": 48}
RATE = {"type": "quantize", "method": "rate"}
GPTQ4 = {"type": "quantize", "method": "gptq", "bits": 4, "group_size": 32, "symmetric": False}
GPTQ3 = {"type": "quantize", "method": "gptq", "bits": 3, "scale_search": True}
ROUND4 = {"type": "quantize", "method": "round", "bits": 4, "group_size": 32, "symmetric": False}
SVD = {"type": "svd", "objective": "output", "variance": 0.9, "singular_values": "down"}
HEADS = {"type": "prune-heads", "ratio": 0.2}
AUTO = {"type": "svd", "variance": "auto", "objective": "output"}
MIXED = {"type": "quantize", "mode": "mix_percentile", "embedding": False}
RECOVER = {"type": "recover", "steps": 12, "batch": 2, "length": 32}
PRUNE = {"type": "prune", "score": "obs", "update": "least_squares", "max_ratio": 0.3}


def recipe(*stages, **rest):
    return parse_recipe(
        {"stages": list(stages), "calibration": WINDOWS, "floats": "source", **rest}
    )


def run(folder, out, what, **options):
    source = SourceModel(folder=folder, name="tiny")
    return compress(source, what, out, text=builtin_text(), **options)


def computes_what_its_weights_say(out, folder):
    """Assert it; return the artifact, loaded."""
    compressed, twin = dense_twin(out, folder)
    with torch.no_grad():
        ours, dense = compressed(some_ids()).logits, twin(some_ids()).logits
    assert relative_difference(ours, dense) < 0.01
    return compressed


WHAT = {
    "svd+prune+rate": recipe(SVD, PRUNE, RATE, target={"bytes_ratio": 0.4}),
    "svd+prune+gptq4": recipe(SVD, PRUNE | {"layer_ratios": "uniform"}, GPTQ4),
    "svd+prune by loss": recipe(SVD | {"objective": "loss"}, PRUNE | {"layer_ratios": "loss"}),
    "gptq3": recipe(GPTQ3),
}


@pytest.mark.parametrize(("what", "family"), every(5, list(product(WHAT, FAMILIES))))
def test_every_family_loads_and_computes_what_its_weights_say(tmp_path, what, family):
    folder = save_tiny(tmp_path / "source", family)
    run(folder, tmp_path / "out", WHAT[what])
    verify_files(tmp_path / "out", read_manifest(tmp_path / "out"))
    compressed = computes_what_its_weights_say(tmp_path / "out", folder)
    assert compressed.generate(some_ids(4), max_new_tokens=4, do_sample=False).shape[1] >= 5


@pytest.mark.parametrize("ratio", [0.28, 0.4])
@pytest.mark.parametrize("allocation", ["loss", "uniform", "pgsvd", "mgaa"])
def test_a_byte_target_is_hit_whatever_the_rule(tmp_path, ratio, allocation):
    folder = save_tiny(tmp_path / "source", "llama", torch.bfloat16, hidden=192, vocabulary=4096)
    what = recipe(RATE, target={"bytes_ratio": ratio, "allocation": allocation})
    report = run(folder, tmp_path / "out", what)
    assert report.ratio_to_source == pytest.approx(ratio, rel=0.02)


MIXED_WIDTHS = {"type": "quantize", "method": "gptq", "group_size": 32, "levels": [3, 4, 8]}


@pytest.mark.parametrize("family", ["llama", "llama-untied", "gpt2"])
@pytest.mark.parametrize("ratio", [0.3, 0.36])
def test_widths_of_their_own_hit_a_target(tmp_path, family, ratio):
    folder = save_tiny(tmp_path / "source", family, torch.bfloat16, hidden=192, vocabulary=1024)
    report = run(folder, tmp_path / "out", recipe(MIXED_WIDTHS, target={"bytes_ratio": ratio}))
    assert report.ratio_to_source == pytest.approx(ratio, rel=0.02)
    assert report.ratio_to_source <= ratio * 1.01
    widths = {round(one.figures["bits"]) for one in report.modules}
    assert len(widths) > 1
    computes_what_its_weights_say(tmp_path / "out", folder)


def test_a_run_with_widths_that_was_killed_goes_on_to_the_same_bytes(tmp_path):
    folder = save_tiny(tmp_path / "source", "llama", torch.bfloat16, hidden=64)
    what = recipe(MIXED_WIDTHS, target={"bytes_ratio": 0.36})
    whole = run(folder, tmp_path / "whole", what)

    class Killed(Silent):
        def advance(self, note=""):
            if note.startswith("model.layers.1"):
                raise KeyboardInterrupt
            return super().advance(note)

    with pytest.raises(KeyboardInterrupt):
        run(folder, tmp_path / "out", what, progress=Killed())
    resumed = run(folder, tmp_path / "out", what, resume=True)
    assert [one.figures for one in resumed.modules] == [one.figures for one in whole.modules]


def test_rows_are_rounded_by_themselves_up_to_a_width(tmp_path):
    folder = save_tiny(tmp_path / "source", "llama", torch.bfloat16, hidden=64)
    obc = GPTQ4 | {"method": "obc", "sparsity": 0.5}
    run(folder, tmp_path / "exact", recipe(obc))
    run(folder, tmp_path / "wide", recipe(obc | {"exact_columns": 8}))
    run(folder, tmp_path / "gptq", recipe(obc | {"method": "gptq"}))
    exact, wide, gptq = (
        dense_twin(tmp_path / name, folder)[1] for name in ("exact", "wide", "gptq")
    )

    def weight(model):
        return model.model.layers[0].mlp.up_proj.weight

    assert torch.equal(weight(wide), weight(gptq))
    assert not torch.equal(weight(exact), weight(gptq))
    assert float((weight(exact) == 0).float().mean()) >= 0.5
    source = load_model(folder, torch.float32)

    def divergence(model):
        with torch.no_grad():
            ours, theirs = (one(some_ids()).logits.log_softmax(-1) for one in (model, source))
        return float((theirs.exp() * (theirs - ours)).sum(-1).mean())

    assert divergence(exact) < divergence(gptq)


@pytest.mark.parametrize("allocation", ["loss", "uniform", "pgsvd", "mgaa", "theoretical"])
def test_ranks_of_all_matrices_hit_their_target_whatever_the_rule(tmp_path, allocation):
    folder = save_tiny(tmp_path / "source", "llama", torch.bfloat16, hidden=192)
    stage = {"type": "svd", "objective": "output", "variance": "auto", "modules": "all"}
    target = {"bytes_ratio": 0.8, "allocation": allocation}
    report = run(folder, tmp_path / "out", recipe(stage, target=target))
    assert report.ratio_to_source == pytest.approx(0.8, rel=0.03)
    kinds = {type(module) for module in load_artifact(tmp_path / "out").modules()}
    assert LowRankLinear in kinds
    computes_what_its_weights_say(tmp_path / "out", folder)


def test_modules_says_whose_matrices_become_pairs(tmp_path):
    folder = save_tiny(tmp_path / "source", "llama", torch.bfloat16, hidden=192)
    stage = {"type": "svd", "variance": 0.5, "modules": "mlp"}
    run(folder, tmp_path / "out", recipe(stage))
    pairs = [
        name
        for name, one in load_artifact(tmp_path / "out").named_modules()
        if isinstance(one, LowRankLinear)
    ]
    assert pairs
    assert all(".mlp." in name for name in pairs)


@pytest.mark.parametrize("name", ["svd-only", "prune-only", "quant-only"])
def test_one_method_alone_hits_its_target_too(tmp_path, name):
    folder = save_tiny(tmp_path / "source", "llama", torch.bfloat16, hidden=192)
    what = resolve({"extends": name, "calibration": WINDOWS, "target": {"bytes_ratio": 0.85}})
    report = run(folder, tmp_path / "out", what)
    assert report.ratio_to_source == pytest.approx(0.85, rel=0.03)
    kinds = {type(module) for module in load_artifact(tmp_path / "out").modules()}
    assert (LowRankLinear in kinds) == (name == "svd-only")
    assert (Int8Linear in kinds) == (name == "quant-only")


@pytest.mark.parametrize(
    ("name", "bits", "zeros"),
    [("gptq-8", 8, 0.0), ("gptq-4", 4, 0.0), ("joint-25-4", 4, 0.25), ("sparsegpt-50", 8, 0.5)],
)
def test_error_feedback_recipes_do_what_their_names_say(tmp_path, name, bits, zeros):
    folder = save_tiny(tmp_path / "source", "llama", torch.bfloat16, hidden=192)
    report = run(folder, tmp_path / "out", resolve({"extends": name, "calibration": WINDOWS}))
    scales = 0.5 if bits == 4 else 0.3  # a scale and a zero point per 64 columns, or per row
    assert bits <= report.modules[0].figures["bits"] < bits + scales
    compressed, twin = dense_twin(tmp_path / "out", folder)
    matrix = twin.model.layers[1].mlp.down_proj.weight
    assert float((matrix == 0).float().mean()) >= zeros
    with torch.no_grad():
        assert relative_difference(compressed(some_ids()).logits, twin(some_ids()).logits) < 0.01


def test_scales_take_two_bytes_also_where_the_head_is_tied(tmp_path):
    source = save_tiny(tmp_path / "source", "llama", torch.bfloat16)
    text = builtin_text()
    compress(
        SourceModel(folder=source, name="tiny"), resolve("gptq-4"), tmp_path / "out",
        text=text, probe_file=tmp_path / "probe",
    )  # fmt: skip
    stored = {}
    for file in weight_files(tmp_path / "out"):
        stored |= read_header(tmp_path / "out" / file)
    scales = {name: header.dtype for name, header in stored.items() if name.endswith(".scale")}
    assert "model.embed_tokens.scale" in scales
    assert set(scales.values()) == {"F16"}


def test_rank_neurons_and_bits_share_one_target(tmp_path):
    folder = save_tiny(tmp_path / "source", "llama", torch.bfloat16, hidden=192, vocabulary=4096)
    stages = [SVD | {"variance": "auto"}, PRUNE | {"max_ratio": "auto"}, RATE]
    report = run(folder, tmp_path / "out", recipe(*stages, target={"bytes_ratio": 0.3}))
    assert report.ratio_to_source == pytest.approx(0.3, rel=0.02)
    by_stage = {module.stage for module in report.modules if module.applied}
    # its attention matrices have decaying spectra: a lower rank is worth it there
    assert {"svd", "quantize"} <= by_stage


def test_more_bytes_bring_the_model_closer_to_its_source(tmp_path):
    folder = save_tiny(tmp_path / "source", "llama", torch.bfloat16, hidden=192, vocabulary=4096)
    source = load_logits(folder)
    differences = []
    for ratio in (0.25, 0.33, 0.42):
        out = tmp_path / f"out-{ratio}"
        run(folder, out, recipe(RATE, target={"bytes_ratio": ratio}))
        differences.append(relative_difference(load_logits(out), source))
    assert differences[0] > 1.5 * differences[1] > 2 * differences[2]
    assert differences[2] < 0.05


def load_logits(folder):
    with torch.no_grad():
        return load_model(folder, torch.float32)(builtin_ids()).logits


def builtin_ids():
    """Text of the kind that the models were calibrated on."""
    text = builtin_text().evaluation[:200].encode()
    return torch.tensor([[3 + (byte - 33) % 256 for byte in text]])


def test_the_layers_are_of_the_kind_the_recipe_names(tmp_path):
    folder = save_tiny(tmp_path / "source")
    run(folder, tmp_path / "a", recipe(SVD, RATE, target={"bytes_ratio": 0.2}))
    model = load_artifact(tmp_path / "a")
    kinds = {type(module) for module in model.modules()}
    assert {Int8Linear, LowRankLinear} <= kinds
    assert CodedLinear not in kinds  # decoded on load
    head, table = model.get_output_embeddings(), model.get_input_embeddings()
    assert head.codes is table.codes  # still one matrix
    run(folder, tmp_path / "b", recipe(GPTQ4))
    packed = load_artifact(tmp_path / "b").get_submodule("model.layers.0.mlp.up_proj")
    assert isinstance(packed, PackedLinear | Int4Linear)
    held = sum(part.nbytes for part in packed.parameters())
    weights = packed.in_features * packed.out_features
    assert held < 0.8 * weights  # rows are filled up, and the groups are small


def test_an_unreachable_target_names_what_can_be_reached(tmp_path):
    folder = save_tiny(tmp_path / "source", "llama", torch.bfloat16)
    with pytest.raises(RecipeError, match=r"asks for [\d,]+ bytes; .* takes at least [\d,]+"):
        run(folder, tmp_path / "out", recipe(RATE, target={"bytes_ratio": 0.02}))
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_recipes_that_contradict_themselves_are_refused():
    for stages, rest, message in [
        ([RATE], {}, "needs a target"),
        ([GPTQ4], {"target": {"bytes_ratio": 0.5}}, "needs a quantize stage with method entropy"),
        ([RATE], {"target": {"bytes_ratio": 0.5, "max_kl": 0.1}}, "either bytes_ratio or max_kl"),
        ([GPTQ4 | {"mode": "tensor"}], {}, "mode tensor is for plain"),
        ([ROUND4 | {"sparsity": 0.5}], {}, "sparsity needs method gptq"),
        ([GPTQ4, PRUNE], {}, "quantize must be the last stage"),
        ([MIXED, HEADS], {}, "prune-heads updates weights, which are codes by then"),
        ([MIXED, PRUNE], {}, "prune updates weights, which are codes by then"),
        ([AUTO], {"target": {"max_kl": 0.1}}, "max_kl needs a quantize stage"),
        ([AUTO, PRUNE], {"target": {"bytes_ratio": 0.9}}, "set prune to auto"),
        (
            [AUTO, RECOVER | {"adapters": "kept"}],
            {"target": {"bytes_ratio": 0.9}},
            "no room for kept adapters",
        ),
        ([PRUNE | {"min_ratio": 0.1, "layer_ratios": "loss"}], {}, "min_ratio is for"),
        ([SVD | {"variance": "auto"}], {}, "svd is set to auto, which needs target"),
        (
            [PRUNE | {"max_ratio": "auto"}, GPTQ4],
            {"target": {"bytes_ratio": 0.5}},
            "auto together with quantization needs method entropy",
        ),
    ]:
        with pytest.raises(RecipeError, match=message):
            recipe(*stages, **rest)


class DiesAt(Silent):
    """Progress whose process is killed at a step."""

    def __init__(self, step):
        self.left = step

    def advance(self, message):
        self.left -= 1
        if not self.left:
            os.kill(os.getpid(), signal.SIGKILL)


def run_killed(folder, out, dies_at):
    what = recipe(
        HEADS, SVD | {"objective": "loss"}, PRUNE, RECOVER, RATE, target={"bytes_ratio": 0.2}
    )
    probe_file = out.with_name(f"{out.name}-probe")
    run(folder, out, what, resume=True, progress=DiesAt(dies_at), probe_file=probe_file)


def test_killed_anywhere_and_resumed_gives_the_same_bytes(tmp_path):
    folder = save_tiny(tmp_path / "source", "llama")

    def attempt(out, dies_at):
        return forked.call(run_killed, folder, out, dies_at)

    assert attempt(tmp_path / "whole", 10**9) == 0
    # 6 steps of sensitivity, a pass of 4 blocks to look, one to prune, 12 steps of recovery, and one
    # to quantize, whose last step is behind the last block
    probe = (tmp_path / "whole-probe").read_bytes()
    for dies_at in (2, 28, 30):
        out = tmp_path / f"killed-{dies_at}"
        assert attempt(out, dies_at) == -signal.SIGKILL
        assert not out.exists()
        # it lay in a folder that went with the run
        (tmp_path / f"killed-{dies_at}-probe").unlink(missing_ok=True)
        assert attempt(out, 10**9) == 0
        assert digests(out) == digests(tmp_path / "whole"), dies_at
        assert (tmp_path / f"killed-{dies_at}-probe").read_bytes() == probe
    left = {path.name for path in tmp_path.iterdir() if not path.name.endswith("-probe")}
    assert left == {"source", "whole", *(f"killed-{n}" for n in (2, 28, 30))}


@pytest.mark.parametrize("ratio", [0.55, 0.7, 0.9])
@pytest.mark.parametrize("family", ["llama", "llama-untied"])
def test_bytes_beyond_the_finest_lattice_are_used_too(tmp_path, ratio, family):
    folder = save_tiny(tmp_path / "source", family, torch.bfloat16, hidden=192, vocabulary=512)
    report = run(folder, tmp_path / "out", recipe(RATE, target={"bytes_ratio": ratio}))
    assert 0.9 * ratio < report.ratio_to_source < 1.02 * ratio
    load_artifact(tmp_path / "out")


def test_weights_that_overflow_are_an_error_and_not_a_hang(tmp_path):
    folder = save_tiny(tmp_path / "source")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"] *= 1e37
    tensors["model.layers.1.mlp.gate_proj.weight"] *= 1e37
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    for stage, rest in [(GPTQ4, {}), (RATE, {"target": {"bytes_ratio": 0.2}})]:
        with pytest.raises(NumericalError, match="calibration"):
            run(folder, tmp_path / "out", recipe(stage, **rest))


def test_groups_wider_than_a_row_are_refused():
    layout = {"kind": "packed", "n_in": 64, "n_out": 64, "bias": False, "bits": 4}
    with pytest.raises(ArtifactError, match="group_size 16777216 is above 64 columns"):
        parse_layouts({"a": layout | {"group_size": 1 << 24}})


def digests(folder):
    manifest = read_manifest(folder)
    verify_files(folder, manifest)
    return json.dumps(manifest.model_dump(mode="json"), sort_keys=True)


def test_a_state_of_another_run_is_refused(tmp_path):
    folder = save_tiny(tmp_path / "source")
    out = tmp_path / "out"
    assert forked.call(run_killed, folder, out, 9) == -signal.SIGKILL
    other = recipe(SVD, PRUNE, RATE, target={"bytes_ratio": 0.21})
    with pytest.raises(ArtifactError, match=r"another model, recipe, calibration"):
        run(folder, out, other, resume=True)
    run(folder, out, other)  # without --resume it starts anew
    assert stored_bytes(out) > 0


def divergence_on_unseen_text(folder, out):
    """KL in nats per token, on the text that is set aside."""
    text, aside = held_out(builtin_text())
    assert aside
    assert aside not in text.calibration
    unseen = unseen_windows(aside, WINDOWS["length"], folder)
    with torch.no_grad():
        wanted = load_model(folder, torch.float32)(unseen).logits.log_softmax(-1)
        found = load_model(out, torch.float32)(unseen).logits.log_softmax(-1)
    return float((wanted.exp() * (wanted - found)).sum(-1).mean())


@pytest.mark.parametrize("excess", [2.0, 0.05])
def test_a_largest_divergence_is_measured_and_kept(tmp_path, monkeypatch, excess):
    folder = save_tiny(tmp_path / "source", "llama", torch.bfloat16, hidden=192)
    monkeypatch.setattr(
        "spq_core.compression.compress.KL_INFLATION", excess
    )  # 0.05: the first plan is too bold
    report = run(folder, tmp_path / "out", recipe(RATE, target={"max_kl": 2e-4}))
    (found,) = [row for row in report.modules if row.stage == "target"]
    assert found.figures["kl"] <= 2e-4
    measured = divergence_on_unseen_text(folder, tmp_path / "out")
    assert measured == pytest.approx(found.figures["kl"], rel=0.1)
    assert 2e-5 < measured < 2.5e-4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]


class Counting(Silent):
    """Notes the stages of a run."""

    def __init__(self):
        self.stages = []

    def begin(self, phase, total, unit):
        del total, unit
        self.stages.append(phase.title)


def test_a_divergence_that_cannot_be_kept_is_an_error(tmp_path):
    folder = save_tiny(tmp_path / "source", "llama", torch.bfloat16, hidden=192)
    ruined = PRUNE | {"max_ratio": 0.9, "min_ratio": 0.9, "update": "none"}
    looked = Counting()
    with pytest.raises(
        TargetUnreachedError, match=r"max_kl 1e-05 was not reached, .* came to"
    ) as caught:
        run(
            folder, tmp_path / "out", recipe(ruined, RATE, target={"max_kl": 1e-5}), progress=looked
        )
    assert caught.value.code == "target_unreachable"
    assert caught.value.reached > 1e-5
    attempts = [stage for stage in looked.stages if "again with more bytes" in stage]
    assert len(attempts) > 1
    assert looked.stages.count("sensitivity") == 1  # one walk for all attempts
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize("later", [PRUNE | {"score": "activation", "max_ratio": 0.0}, MIXED])
def test_what_a_stage_did_is_there_for_a_later_pass(tmp_path, later):
    folder = save_tiny(tmp_path / "source")
    trained = RECOVER | {"trains": ["norms", "embedding"], "learning_rate": 0.01}
    run(folder, tmp_path / "alone", recipe(later))
    run(folder, tmp_path / "out", recipe(trained, later))
    before, after = load_artifact(tmp_path / "alone"), load_artifact(tmp_path / "out")
    assert not torch.equal(before.model.norm.weight, after.model.norm.weight)
    with torch.no_grad():
        assert relative_difference(after(some_ids()).logits, before(some_ids()).logits) > 0.01


def test_a_training_that_runs_away_is_an_error(tmp_path):
    folder = save_tiny(tmp_path / "source", "llama", torch.bfloat16)
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] *= 1e38  # logits that are finite while student and source agree
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    wild = RECOVER | {"learning_rate": 1.0, "alpha": 4096, "rank": 1, "decay_to_zero": False}
    with pytest.raises(NumericalError):
        run(folder, tmp_path / "out", recipe(wild))
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize("family", ["opt", "gpt2"])
def test_samples_longer_than_the_model_has_positions_are_cut(tmp_path, family):
    folder = save_tiny(tmp_path / "source", family)
    long = RECOVER | {"length": 512, "steps": 2, "batch": 1}
    run(folder, tmp_path / "windows", recipe(long))
    lines = {"dataset": "builtin", "samples": 4, "length": 512}
    by_activation = {"type": "prune", "max_ratio": 0.3}
    what = parse_recipe({"stages": [by_activation, long | {"form": "lines"}], "calibration": lines})
    run(folder, tmp_path / "lines", what)


@pytest.mark.extended
def test_a_killed_training_leaves_one_state_and_goes_on_from_it(tmp_path):
    folder = save_tiny(tmp_path / "source")
    steps = []

    class StopsOnce(Silent):
        def advance(self, message):
            steps.append(message)
            left = [path.name for path in (tmp_path / "out.state/recover").glob("*.safetensors")]
            assert len(left) <= 1
            if len(steps) == 25:
                raise KeyboardInterrupt

    what = recipe(RECOVER | {"steps": 30, "batch": 1})
    with pytest.raises(KeyboardInterrupt):
        run(folder, tmp_path / "out", what, progress=StopsOnce())
    run(folder, tmp_path / "out", what, progress=StopsOnce(), resume=True)
    assert len(steps) == 25 + 10 + 4  # from step 20 on, then four blocks
    run(folder, tmp_path / "whole", what)
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")

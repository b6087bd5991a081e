"""The `spq-paper` recipe against figures of the SPQ authors' own code on the same weights."""

import hashlib
import json
from functools import cache

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from spq_core.artifact.read import load_model
from spq_core.compression.compress import SourceModel, compress
from spq_core.data.texts import find_text, paper_text
from spq_core.data.windows import consecutive_windows
from spq_core.evaluation.quality import score_windows
from spq_core.formats.slicing import float_weight, linear_at
from spq_core.methods.pruning.stage import PruneStage
from spq_core.methods.quantization.granularity import per_channel_names
from spq_core.methods.quantization.settings import ScaleMode
from spq_core.methods.svd.factorize import decompose
from spq_core.methods.svd.rank import decide_rank
from spq_core.models.blocks import load_layer
from spq_core.models.checkpoint import open_checkpoint
from spq_core.models.skeleton import load_skeleton
from spq_core.recipe.catalog import resolve

ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")


@pytest.fixture(scope="module")
def reference(shared):
    return json.loads((shared / "reference" / "spq-reference-smollm2.json").read_text())


@pytest.fixture(scope="module")
def spectrum_of(smollm2):
    """Shape and spectrum of an attention matrix, computed when it is asked for."""
    skeleton, checkpoint = load_skeleton(smollm2), open_checkpoint(smollm2)

    @cache
    def found(name):
        path, _, own = name.partition(".self_attn.")
        layer = load_layer(skeleton, checkpoint, int(path.rpartition(".")[2]))
        weight = float_weight(linear_at(layer, f"self_attn.{own}"))
        return tuple(weight.shape), decompose(weight)

    return found


@pytest.fixture(scope="module")
def paper_run(smollm2, shared, tmp_path_factory):
    """The recipe with the authors' own choice of calibration text; keeps what pruning saw."""
    kept = {}
    plain_apply = PruneStage.apply

    def noting_apply(stage, path, block, inputs):
        reports = plain_apply(stage, path, block, inputs)
        if path:
            scores, ratio = stage.scores[path], stage.ratios()[path]
            count = int(scores.numel() * (1 - ratio))
            kept[path] = (ratio, torch.topk(scores, count).indices.sort().values)
        return reports

    out = tmp_path_factory.mktemp("paper") / "out"
    recipe = resolve({"extends": "spq-paper", "calibration": {"allow_evaluation_text": True}})
    text = find_text("wikitext2", shared / "data")
    source = SourceModel(folder=smollm2, name="SmolLM2-135M")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PruneStage, "apply", noting_apply)
        report = compress(source, recipe, out, text=text)
    return out, report, kept, text


VARIANCES = ("0.96", "0.9", "0.84")


@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize(
    "layers",
    [range(0, 30, 10), pytest.param(range(30), marks=pytest.mark.quality)],
    ids=["some", "all"],
)
def test_every_rank_and_every_skip(reference, spectrum_of, variance, layers):
    expected = reference["svd"][variance]
    assert len(expected) == 120
    off_by_one = 0
    for name, theirs in expected.items():
        if int(name.split(".")[2]) not in layers:
            continue
        shape, spectrum = spectrum_of(name)
        ours = decide_rank(spectrum.singular_values, shape, float(variance))
        assert ours.factorise == theirs["factorised"], name
        assert abs(ours.rank - theirs["rank_used"]) <= 1, name
        off_by_one += ours.rank != theirs["rank_used"]
    assert off_by_one <= 2


def test_pruning_ratios_and_kept_neurons(reference, paper_run):
    _, _, kept, _ = paper_run
    for index, (ratio, neurons) in enumerate(kept.values()):
        theirs = reference["prune_kept_0.05"][str(index)]
        assert ratio == pytest.approx(reference["prune"]["0.05"][index], abs=1e-4)
        assert len(neurons) == theirs["kept"]
        digest = hashlib.sha256(neurons.numpy().astype(np.int32).tobytes()).hexdigest()
        assert digest[:16] == theirs["sha256_of_kept_indices_int32"], index


@pytest.mark.parametrize("mode", ["mix_name", "mix_percentile", "mix_meanstd"])
def test_layers_per_quantization_mode(reference, smollm2, mode):
    shapes = {"lm_head": (49152, 576)}
    sizes = {
        name.removesuffix(".weight"): header.shape
        for name, header in open_checkpoint(smollm2).tensors.items()
    }
    for name, theirs in reference["svd"]["0.96"].items():
        n_out, n_in = sizes[name]
        rank = theirs["rank_used"]
        pair = {f"{name}.down": (rank, n_in), f"{name}.up": (n_out, rank)}
        shapes |= pair if theirs["factorised"] else {name: (n_out, n_in)}
    for index in range(30):
        shapes |= {f"model.layers.{index}.{name}": (1536, 576) for name in MLP[:2]}
        shapes[f"model.layers.{index}.{MLP[2]}"] = (576, 1536)
    chosen = per_channel_names(
        ScaleMode(mode), shapes, mlp=MLP, single_scale=(*ATTENTION, "lm_head")
    )
    theirs = reference["quant_modes"][mode]
    assert len(chosen) == theirs["per_channel"]
    assert len(shapes) - len(chosen) == theirs["per_tensor"]


@pytest.fixture(scope="module")
def loaded(paper_run):
    out, report, _, text = paper_run
    assert report.calibration["is_evaluation_text"]
    return load_model(out, torch.float32), AutoTokenizer.from_pretrained(out), text


def test_the_papers_own_figure(reference, loaded):
    model, tokenizer, text = loaded
    short = consecutive_windows(tokenizer, paper_text(text.evaluation), 512, 1)
    paper = score_windows({"ours": model}, short, reference=None)["ours"]["perplexity"]
    expected = reference["end_to_end"]["ppl_paper_512_tokens"]["after"]
    assert paper == pytest.approx(expected, rel=0.01)


@pytest.mark.quality
def test_the_perplexity_of_many_windows(reference, loaded):
    """Three minutes of one core: `make quality`."""
    model, tokenizer, text = loaded
    windows = consecutive_windows(tokenizer, text.evaluation, 1024, 32)
    scored = score_windows({"ours": model}, windows, reference=None)["ours"]
    theirs = reference["end_to_end"]["ppl_wikitext2_test_1024x32_windows"]
    assert scored["tokens"] == theirs["tokens"]
    assert scored["perplexity"] == pytest.approx(theirs["after"], rel=0.01)

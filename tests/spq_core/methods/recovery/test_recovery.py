"""Recovery: gradients against the whole model's, and what the stage leaves in an artifact."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import AutoModelForCausalLM

from spq_core.artifact.read import load_artifact
from spq_core.compression.compress import SourceModel, compress
from spq_core.data.texts import builtin_text
from spq_core.errors import RecipeError
from spq_core.formats.adapted.linear import AdaptedLinear
from spq_core.formats.int8.linear import Int8Linear
from spq_core.formats.low_rank.linear import LowRankLinear
from spq_core.methods.recovery.settings import RecoverSettings
from spq_core.methods.recovery.trainables import AdapterParameters
from spq_core.methods.training.rows import training_rows
from spq_core.methods.training.walk import Batch, gradients_of
from spq_core.models.blocks import blocked_source
from spq_core.models.checkpoint import open_checkpoint
from spq_core.models.skeleton import load_skeleton
from spq_core.models.tokenizer import load_tokenizer
from spq_core.models.weight_files import stored_bytes
from spq_core.recipe.document import parse_recipe
from spq_core.streaming.head import Head
from spq_core.streaming.stream import final_states
from spq_core.workflow.load_gate import check_loads
from tests.marks import every
from tests.models import FAMILIES, save_tiny, some_ids
from tests.spq_core.compression.test_compress import relative_difference

pytestmark = pytest.mark.slow

LINES = {"dataset": "builtin", "samples": 8, "length": 48}
SVD = {"type": "svd", "variance": 0.9}
PRUNE = {"type": "prune", "max_ratio": 0.5, "min_ratio": 0.5}
INT8 = {"type": "quantize", "embedding": False}
RECOVER = {
    "type": "recover", "steps": 20, "batch": 4, "length": 48, "learning_rate": 0.002, "rank": 4,
}  # fmt: skip


def recipe(*stages):
    return parse_recipe({"stages": list(stages), "calibration": LINES, "floats": "source"})


def run(folder, out, what, **options):
    source = SourceModel(folder=folder, name="tiny")
    return compress(source, what, out, text=builtin_text(), **options)


def blocked(folder):
    return blocked_source(load_skeleton(folder), open_checkpoint(folder))


def whole_loss(model, batch, objective, teacher_folder):
    """The same loss by the textbook, from whole models."""
    logits = model(batch.rows).logits
    if objective == "text":
        kept = batch.real[:, 1:]
        return functional.cross_entropy(logits[:, :-1][kept], batch.rows[:, 1:][kept])
    with torch.no_grad():
        wanted = AutoModelForCausalLM.from_pretrained(teacher_folder)(batch.rows).logits
    kl = functional.kl_div(
        logits.log_softmax(-1), wanted.log_softmax(-1), log_target=True, reduction="none"
    )
    return kl.sum(-1)[batch.real].mean()


def leave_the_start(trainables):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, part in trainables.parameters.items():
            if "adapter" in name:
                part.copy_(torch.randn(part.shape, generator=generator) * 0.05)


def adapted_whole(folder, student, trainables):
    """The whole model with the trained tensors in it."""
    whole, skeleton = AutoModelForCausalLM.from_pretrained(folder), student.skeleton
    for index in range(skeleton.n_layers):
        path = skeleton.layer_path(index)
        whole.set_submodule(path, student.layer(index))
        trainables.attach(path, whole.get_submodule(path))
    for name, part in trainables.parameters.items():
        module, _, key = name.rpartition(".")
        if "adapter" not in name:
            setattr(whole.get_submodule(module), key, part)
    if skeleton.tied:
        whole.get_output_embeddings().weight = whole.get_input_embeddings().weight
    return whole


@pytest.mark.parametrize("objective", ["text", "logits"])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_those_of_the_whole_model(tmp_path, family, objective):
    folder = save_tiny(tmp_path / "student", family)
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():  # a teacher that differs
        for parameter in model.parameters():
            parameter.mul_(1.1)
    model.save_pretrained(tmp_path / "teacher")
    rows = torch.cat([some_ids(24), some_ids(24).flip(1)])
    real = torch.ones_like(rows, dtype=torch.bool)
    real[1, 17:] = False
    batch = Batch(rows, real)
    settings = RecoverSettings(type="recover", trains=("norms", "embedding"), rank=3)
    trainables, student = AdapterParameters(settings), blocked(folder)
    teacher = blocked(tmp_path / "teacher")
    taught = None
    if objective == "logits":
        taught = (Head(teacher.rest(), teacher.skeleton), final_states(teacher, rows))
    first = gradients_of(student, trainables, batch, taught)
    leave_the_start(trainables)  # where half of all gradients are zero
    found = gradients_of(student, trainables, batch, taught)
    assert found.loss != first.loss
    loss = whole_loss(
        adapted_whole(folder, student, trainables), batch, objective, tmp_path / "teacher"
    )
    torch.testing.assert_close(found.loss, loss.item(), rtol=1e-4, atol=1e-6)
    names = [name for name in trainables.parameters if name in found.gradients]
    expected = torch.autograd.grad(loss, list(trainables.parameters.values()), allow_unused=True)
    by_name = dict(zip(trainables.parameters, expected, strict=True))
    used = {name for name, part in by_name.items() if part is not None}
    assert used == set(names)
    assert any("norm" in name or "ln" in name for name in used)
    for name in names:
        scale = float(by_name[name].abs().max())
        torch.testing.assert_close(
            found.gradients[name], by_name[name], rtol=1e-3, atol=1e-4 * scale + 1e-9, msg=name
        )


def test_a_padded_line_counts_its_own_tokens_only(tmp_path):
    folder = save_tiny(tmp_path / "source")
    settings = RecoverSettings(type="recover", form="lines", length=200, steps=5, batch=2)
    samples = training_rows(settings, builtin_text(), folder)
    assert samples.rows.shape == (10, 200)
    for row, real in zip(samples.rows, samples.real, strict=True):
        assert (row[~real] == 0).all()  # the pad token
        assert (row[real] >= 3).all()


@pytest.mark.parametrize(
    "family", every(3, ["llama", "llama-untied", "gemma3", "opt", "gpt2", "phi3"])
)
def test_merged_adapters_bring_the_model_back_towards_its_source(tmp_path, family):
    folder = save_tiny(tmp_path / "source", family)
    run(folder, tmp_path / "plain", recipe(SVD, PRUNE))
    run(folder, tmp_path / "recovered", recipe(SVD, PRUNE, RECOVER))
    ids = torch.tensor(load_tokenizer(folder)(builtin_text().evaluation[:200])["input_ids"])[None]
    source = AutoModelForCausalLM.from_pretrained(folder)

    def divergence(name):
        with torch.no_grad():
            return functional.kl_div(
                load_artifact(tmp_path / name)(ids).logits.log_softmax(-1),
                source(ids).logits.log_softmax(-1), log_target=True, reduction="batchmean",
            )  # fmt: skip

    plain, recovered = load_artifact(tmp_path / "plain"), load_artifact(tmp_path / "recovered")
    assert [type(module) for module in plain.modules()] == [
        type(module) for module in recovered.modules()
    ]  # pairs stay pairs, and nothing stands beside them
    assert divergence("recovered") < 0.8 * divergence("plain")


def test_kept_adapters_stand_beside_integer_codes(tmp_path):
    folder = save_tiny(tmp_path / "source")
    beside = RECOVER | {"adapters": "kept", "objective": "text", "trains": ["norms", "embedding"]}
    report = run(folder, tmp_path / "out", recipe(SVD, INT8, beside))
    model = load_artifact(tmp_path / "out")
    adapted = [module for module in model.modules() if isinstance(module, AdaptedLinear)]
    pairs = [module for module in model.modules() if isinstance(module, LowRankLinear)]
    assert len(adapted) == 3 * 7 + len(pairs)  # one for each factor
    assert all(module.adapter_up.abs().max() > 0 for module in adapted)
    losses = [row.figures for row in report.modules if row.stage == "recover"]
    assert losses[0]["last_loss"] < losses[0]["first_loss"]
    source = AutoModelForCausalLM.from_pretrained(folder)
    trained = model.get_input_embeddings().weight
    assert not torch.equal(trained, source.get_input_embeddings().weight)
    twin = dense_copy(model)
    with torch.no_grad():
        assert relative_difference(model(some_ids()).logits, twin(some_ids()).logits) < 1e-4


def test_adapters_on_frozen_codes_change_no_code_and_learn(tmp_path):
    folder = save_tiny(tmp_path / "source")
    frozen = {"type": "quantize", "method": "gptq", "bits": 4, "group_size": 16, "symmetric": False}
    beside = RECOVER | {"adapters": "kept", "steps": 40}
    for name, stages in {"plain": [frozen], "adapted": [frozen, beside]}.items():
        document = {
            "stages": stages,
            "calibration": LINES | {"form": "windows"},
            "floats": "source",
        }
        report = run(folder, tmp_path / name, parse_recipe(document))
    plain, adapted = load_artifact(tmp_path / "plain"), load_artifact(tmp_path / "adapted")
    found = {name: one for name, one in adapted.named_modules() if isinstance(one, AdaptedLinear)}
    assert len(found) == 3 * 7
    for name, one in found.items():
        assert torch.equal(one.base.float_weight(), plain.get_submodule(name).float_weight())
    (losses, *_) = [row.figures for row in report.modules if row.stage == "recover"]
    assert losses["last_loss"] < losses["first_loss"]


BY_ENTROPY = {"type": "quantize", "method": "entropy"}


@pytest.mark.parametrize(
    "after",
    every(2, [{"adapters": "kept"}, {"adapters": "none", "trains": ["norms"]}]),
    ids=["adapters", "norms"],
)
def test_codes_by_entropy_wait_for_the_training_as_they_are_stored(tmp_path, after):
    folder = save_tiny(tmp_path / "source")
    for name, stages in {"plain": [BY_ENTROPY], "tuned": [BY_ENTROPY, RECOVER | after]}.items():
        document = {
            "stages": stages, "target": {"bytes_ratio": 0.5}, "floats": "source",
            "calibration": LINES | {"form": "windows"},
        }  # fmt: skip
        probe = tmp_path / f"{name}.safetensors"
        run(folder, tmp_path / name, parse_recipe(document), probe_file=probe)
        check_loads(tmp_path / name, probe)
    plain, tuned = load_artifact(tmp_path / "plain"), load_artifact(tmp_path / "tuned")
    for name, one in plain.named_modules():
        if isinstance(one, Int8Linear):
            other = tuned.get_submodule(name)
            base = other.base if isinstance(other, AdaptedLinear) else other
            assert torch.equal(base.float_weight(), one.float_weight())
    norms = [
        torch.equal(one, dict(tuned.named_parameters())[name])
        for name, one in plain.named_parameters()
        if "norm" in name
    ]
    assert all(norms) if after["adapters"] == "kept" else not any(norms)


def test_norms_alone_take_no_bytes(tmp_path):
    folder = save_tiny(tmp_path / "source")
    sizes = [
        stored_bytes(run_and_name(folder, tmp_path / name, stages))
        for name, stages in {
            "plain": [INT8],
            "tuned": [INT8, RECOVER | {"adapters": "none", "trains": ["norms"]}],
        }.items()
    ]
    assert sizes[0] == sizes[1]


def run_and_name(folder, out, stages):
    run(folder, out, recipe(*stages))
    return out


def dense_copy(model):
    """The artifact with every adapter multiplied out."""
    for name, module in list(model.named_modules()):
        if isinstance(module, AdaptedLinear):
            codes = module.base
            weight = codes.unpadded_codes().float() * codes.scale[:, None]
            linear = nn.Linear(*reversed(weight.shape), bias=codes.bias is not None)
            linear.weight.data = weight + module.adapter_up @ module.adapter_down
            if codes.bias is not None:
                linear.bias.data = codes.bias.data
            model.set_submodule(name, linear)
    return model


def test_the_source_itself_can_be_tuned_as_a_control(tmp_path):
    folder = save_tiny(tmp_path / "source")
    text = RECOVER | {"objective": "text"}
    report = run(folder, tmp_path / "out", recipe(text))
    tuned = load_artifact(tmp_path / "out")
    assert type(tuned.model.layers[0].mlp.up_proj) is nn.Linear
    figures = report.modules[0].figures
    assert figures["last_loss"] < figures["first_loss"]
    assert report.artifact_bytes < 1.05 * report.source_bytes + 10_000


@pytest.mark.parametrize(
    ("stages", "named"),
    [
        ([INT8, RECOVER], "cannot be merged"),
        ([RECOVER | {"adapters": "kept"}, INT8], "must be the last"),
        ([{"type": "quantize", "method": "gptq"}, PRUNE], "last stage"),
        ([RECOVER | {"adapters": "none"}], "nothing is trained"),
        ([{"type": "quantize", "method": "gptq"}, RECOVER], "cannot be merged|last stage"),
    ],
)
def test_an_order_that_cannot_work_is_refused(stages, named):
    with pytest.raises(RecipeError, match=named):
        recipe(*stages)


def test_a_quantized_embedding_cannot_be_trained(tmp_path):
    folder = save_tiny(tmp_path / "source")
    what = recipe({"type": "quantize"}, RECOVER | {"adapters": "kept", "trains": ["embedding"]})
    with pytest.raises(RecipeError, match="embedding"):
        run(folder, tmp_path / "out", what)

"""Learned spectra: what a mask does, what is cut, and what an artifact of any size holds."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from spq_core.artifact.manifest import BESIDE_FOLDER, read_manifest
from spq_core.artifact.read import load_artifact
from spq_core.compression.compress import SourceModel, compress
from spq_core.data.texts import builtin_text
from spq_core.errors import ArtifactError, RecipeError
from spq_core.formats.low_rank.linear import LowRankLinear
from spq_core.methods.spectra.directions import chosen, directions_of, with_adapter
from spq_core.methods.spectra.masks import next_scores, straight_through, without_ties
from spq_core.methods.spectra.settings import SpectrumSettings
from spq_core.methods.spectra.steps import AcipSteps
from spq_core.methods.spectra.trainables import DirectionParameters
from spq_core.methods.training.rows import training_rows
from spq_core.methods.training.walk import Batch, gradients_of
from spq_core.models.blocks import blocked_source
from spq_core.models.checkpoint import open_checkpoint
from spq_core.models.skeleton import load_skeleton
from spq_core.models.weight_files import weight_files
from spq_core.progress import Silent
from spq_core.recipe.document import parse_recipe
from spq_core.streaming.run_state import StateFolder
from spq_core.workflow.resize import resize
from tests.model_types.toys import save_toy
from tests.models import save_tiny

STAGE = {
    "type": "spectrum", "steps": 16, "batch": 2, "length": 48, "learning_rate": 0.002,
    "adapter_rank": 2, "keep": 0.6, "objective": "text", "mask_rate": 0.1, "penalty_growth": 1.4,
}  # fmt: skip


def recipe(**changed):
    return parse_recipe(
        {"stages": [STAGE | changed], "calibration": {"dataset": "builtin"}, "floats": "source"}
    )


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source") / "tiny"
    save_tiny(folder)
    return folder


def run(source, out, what, **options):
    model = SourceModel(folder=source, name="tiny")
    return compress(model, what, out, text=builtin_text(), **options)


@pytest.fixture(scope="module")
def any_size(source, tmp_path_factory):
    out = tmp_path_factory.mktemp("any") / "artifact"
    run(source, out, recipe(any_size=True))
    return out


@pytest.mark.parametrize("shape", [(12, 30), (30, 12), (16, 16)])
def test_directions_are_the_matrix(shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = directions_of(weight)
    assert torch.allclose(found.up @ found.down, weight, atol=1e-5)
    assert torch.allclose(found.singular_values, torch.linalg.svdvals(weight), atol=1e-4)
    some = torch.tensor([0, 3, 4])
    up, down = chosen(found, some)
    u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    assert torch.allclose(up @ down, (u[:, some] * s[some]) @ vh[some], atol=1e-4)


def test_a_pair_with_an_adapter_is_their_sum():
    one = torch.Generator().manual_seed(1)
    up, down, more_up, more_down = (
        torch.randn(shape, generator=one) for shape in ((8, 3), (3, 6), (8, 2), (2, 6))
    )
    both = with_adapter((up, down), (more_up, more_down))
    assert torch.allclose(both[0] @ both[1], up @ down + more_up @ more_down, atol=1e-5)


def test_a_closed_mask_learns_nothing_and_an_open_one_as_a_factor():
    mask = torch.tensor([0.7, 0.0, -0.2], requires_grad=True)
    gate = straight_through(mask)
    assert gate.tolist() == [1.0, 0.0, 0.0]
    (gate * torch.tensor([2.0, 3.0, 5.0])).sum().backward()
    assert mask.grad.tolist() == [2.0, 0.0, 0.0]


def test_what_closes_first_comes_last():
    scores, masks = torch.ones(3), [[1.0, 0.5, -0.1], [0.9, -0.1, -0.2], [0.8, -0.2, -0.3]]
    for mask in masks:
        scores = next_scores(scores, torch.tensor(mask))
    assert scores.tolist() == pytest.approx([0.8, -1.0, -2.0])


def begun(source, tmp_path, **changed):
    """A model in terms of its directions, and the rules of a step."""
    settings = SpectrumSettings.model_validate(STAGE | changed)
    model = blocked_source(load_skeleton(source), open_checkpoint(source))
    trained = DirectionParameters(settings, model.skeleton.family)
    trained.store = StateFolder(tmp_path / "state", "x")
    for index in range(model.skeleton.n_layers):
        trained.create(model.skeleton.layer_path(index), model.layer(index))
    trained.settle_fixed()
    return model, trained


class Nothing:
    def __init__(self):
        self.parameters = {}

    def attach(self, path, block):
        return {}


def batch_of(source, settings):
    rows, real = training_rows(settings, builtin_text(), source).batch(0, 2)
    return Batch(rows, real)


def test_open_masks_change_nothing(source, tmp_path):
    model, trained = begun(source, tmp_path)
    batch = batch_of(source, trained.settings)
    plain = gradients_of(model, Nothing(), batch, None)
    masked = gradients_of(model, trained, batch, None)
    assert masked.loss == pytest.approx(plain.loss, rel=1e-5)


def test_the_gradient_of_a_mask_is_that_of_its_direction(source, tmp_path):
    model, trained = begun(source, tmp_path, method="soco", adapter_rank=0)
    batch = batch_of(source, trained.settings)
    name = "model.layers.1.mlp.up_proj"
    found = gradients_of(model, trained, batch, None).gradients[f"{name}.mask"]
    losses = []
    for step in (0.01, -0.01):
        trained.masks[name].data[2] = 1 + step
        losses.append(gradients_of(model, trained, batch, None).loss)
    assert float(found[2]) == pytest.approx((losses[0] - losses[1]) / 0.02, rel=0.05)


def test_masks_that_closed_never_open_again(source, tmp_path):
    model, trained = begun(source, tmp_path, settle=0.0, reach=0.05)
    rules = AcipSteps(trained.settings, trained)
    optimizer = torch.optim.AdamW(trained.masks.values(), lr=0.1, weight_decay=0.0)
    batch = batch_of(source, trained.settings)
    first = gradients_of(model, trained, batch, None).gradients
    rules.begin({name: part for name, part in first.items() if name.endswith("mask")})
    closed = {
        name: torch.zeros(len(mask), dtype=torch.bool) for name, mask in trained.masks.items()
    }
    sizes = []
    for step in range(16):
        found = gradients_of(model, trained, batch, None)
        for name, mask in trained.masks.items():
            mask.grad = found.gradients[f"{name}.mask"]
        rules.before(step)
        optimizer.step()
        rules.after(step)
        for name, mask in trained.masks.items():
            now = mask.data <= 0
            assert bool((now | ~closed[name]).all())
            closed[name] = now
        sizes.append(rules.share_open())
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < 0.9
    first, last = (
        torch.cat([(scores <= limit).float() for scores in trained.scores.values()])
        for limit in (-3.0, 0.0)
    )
    assert 0 < float(first.mean()) < float(last.mean()) < 1


@pytest.mark.parametrize("method", ["acip", "soco", "largest"])
def test_an_artifact_has_the_size_it_was_asked_for(source, tmp_path, method):
    options = {"adapter_rank": 0} if method == "soco" else {}
    report = run(source, tmp_path / "out", recipe(method=method, **options))
    model = load_artifact(tmp_path / "out")
    whole = kept = 0
    plain = blocked_source(load_skeleton(source), open_checkpoint(source)).layer(0)
    for module in model.model.layers[0].modules():
        if isinstance(module, LowRankLinear):
            assert module.rank * (module.in_features + module.out_features) < (
                module.in_features * module.out_features
            )
    for one in report.modules:
        shape = plain.get_submodule(one.layer.split(".", 3)[3]).weight.shape
        whole += shape.numel()
        pair = (one.figures["rank"] + (0 if method == "soco" else 2)) * sum(shape)
        kept += pair if one.applied else shape.numel()
    assert 0.55 * whole <= kept <= 0.6 * whole
    if method == "largest":
        assert not any(one.figures.get("not_largest") for one in report.modules)
    else:
        assert any(one.figures.get("not_largest") for one in report.modules)


def test_what_was_trained_stays_where_a_matrix_does(source, tmp_path):
    """Another stage behind it sees the blocks again."""
    stage = STAGE | {"method": "largest", "keep": 1.0}
    still = {
        "type": "recover",
        "steps": 1,
        "batch": 1,
        "length": 48,
        "rank": 1,
        "learning_rate": 1e-12,
    }
    for name, stages in {"alone": [stage], "followed": [stage, still]}.items():
        document = {"stages": stages, "calibration": {"dataset": "builtin"}, "floats": "source"}
        run(source, tmp_path / name, parse_recipe(document))
    alone, followed = (load_artifact(tmp_path / name) for name in ("alone", "followed"))
    plain = blocked_source(load_skeleton(source), open_checkpoint(source)).layer(1)
    name = "mlp.up_proj"
    one, other = (model.model.layers[1].get_submodule(name).weight for model in (alone, followed))
    assert not torch.allclose(one, plain.get_submodule(name).weight, atol=1e-4)
    assert torch.allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("method", ["acip", "soco"])
def test_another_stage_may_follow(source, tmp_path, method):
    stage = STAGE | {"method": method, "steps": 4, "adapter_rank": 0}
    document = {
        "stages": [stage, {"type": "quantize", "method": "gptq", "bits": 8}],
        "calibration": {"dataset": "builtin", "form": "windows", "samples": 8, "length": 48},
    }
    run(source, tmp_path / "out", parse_recipe(document))
    assert load_artifact(tmp_path / "out") is not None


def test_masks_that_close_together_go_by_energy():
    scores = torch.tensor([0.7, -1.0, -1.0, -2.0, 0.0])
    energy = torch.tensor([0.1, 0.2, 0.4, 0.9, 0.3])
    found = without_ties(scores, energy)
    assert found.argsort(descending=True).tolist() == [0, 4, 2, 1, 3]
    assert found[0] == scores[0]


def test_a_killed_training_goes_on(source, tmp_path):
    whole = tmp_path / "whole"
    run(source, whole, recipe(any_size=True))

    class Killed(Silent):
        steps = 0

        def advance(self, message=""):
            self.steps += message.startswith("loss")
            if self.steps == 13:
                raise KeyboardInterrupt

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run(source, out, recipe(any_size=True), progress=Killed())
    run(source, out, recipe(any_size=True), resume=True)
    assert read_manifest(out).files == read_manifest(whole).files


def tensors(folder):
    return {path.name: load_file(path) for path in sorted(folder.glob("model-*.safetensors"))}


def equal(one, other):
    return one.keys() == other.keys() and all(
        one[file].keys() == other[file].keys()
        and all(torch.equal(one[file][name], other[file][name]) for name in one[file])
        for file in one
    )


@pytest.mark.extended
def test_sizes_are_met_and_there_and_back_is_the_same(any_size, tmp_path):
    ratio = {}
    for wanted in (0.6, 0.7, 0.8, 0.9):
        made = resize(any_size, wanted, tmp_path / f"{wanted}", Silent())
        ratio[wanted] = made.ratio
        assert (
            wanted - 0.06 <= made.ratio <= wanted
        )  # of a tiny model, whose files are half headers
    back = resize(tmp_path / "0.6", 0.8, tmp_path / "back", Silent())
    assert equal(tensors(tmp_path / "back"), tensors(tmp_path / "0.8"))
    assert back.directions_bytes > 0
    kept = read_manifest(tmp_path / "back").recipe["stages"][0]["keep"]
    assert kept == read_manifest(tmp_path / "0.8").recipe["stages"][0]["keep"]


def test_towers_for_images_stay_bit_by_bit_in_every_size(tmp_path):
    folder = save_toy("gemma3", tmp_path / "source")
    (file,) = weight_files(folder)
    before = load_file(folder / file)
    small = [name for name, t in before.items() if "vision" in name and t.ndim == 1]
    tower = {name: torch.randn(before[name].shape) for name in small}
    save_file(before | tower, folder / file, metadata={"format": "pt"})
    run(folder, tmp_path / "out", recipe(any_size=True, steps=2))
    resize(tmp_path / "out", 0.95, tmp_path / "resized", Silent())
    for made in (tmp_path / "out", tmp_path / "resized"):
        stored = [t for one in tensors(made).values() for t in one.values()]
        for name, value in tower.items():
            assert any(t.shape == value.shape and torch.equal(t, value) for t in stored), name


def test_resizing_is_running_again_with_that_size(source, any_size, tmp_path):
    resize(any_size, 0.7, tmp_path / "resized", Silent())
    keep = read_manifest(tmp_path / "resized").recipe["stages"][0]["keep"]
    run(source, tmp_path / "anew", recipe(any_size=True, keep=keep))
    assert equal(tensors(tmp_path / "resized"), tensors(tmp_path / "anew"))
    reports = [
        {one["layer"]: (one["applied"], one["figures"]["rank"]) for one in read_manifest(tmp_path / name).modules}
        for name in ("resized", "anew")
    ]  # fmt: skip
    assert reports[0] == reports[1]


def test_a_size_out_of_reach_says_which_can_be_reached(any_size, tmp_path):
    with pytest.raises(RecipeError, match=r"0\.05 cannot be reached: artifact goes from 0\.\d+ to"):
        resize(any_size, 0.05, tmp_path / "out", Silent())
    assert not (tmp_path / "out").exists()


def test_dropped_directions_end_it(any_size, tmp_path):
    made = resize(any_size, 0.7, tmp_path / "small", Silent(), keeps_directions=False)
    assert made.directions_bytes == 0
    assert not (tmp_path / "small" / BESIDE_FOLDER).exists()
    with pytest.raises(ArtifactError, match="holds no directions"):
        resize(tmp_path / "small", 0.8, tmp_path / "again", Silent())


def test_loaders_leave_directions_alone(any_size):
    index = json.loads((any_size / "model.safetensors.index.json").read_text())
    assert not any(BESIDE_FOLDER in file for file in index["weight_map"].values())
    assert load_artifact(any_size) is not None


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"method": "largest", "adapter_rank": 0}, "trains adapters alone"),
        ({"method": "soco", "any_size": True}, "needs an order of all directions"),
        ({"weight_decay": 0.1}, "would shrink the masks of method acip"),
    ],
)
def test_settings_that_make_no_sense_say_so(changed, words):
    with pytest.raises(RecipeError, match=words):
        recipe(**changed)


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        ([{"type": "svd"}, STAGE], "both make pairs"),
        ([STAGE | {"any_size": True}, {"type": "quantize"}], "leave out quantize"),
        ([STAGE, {"type": "prune", "max_ratio": 0.1}], "prune must come before spectrum"),
    ],
)
def test_orders_that_cannot_be_are_refused(stages, words):
    with pytest.raises(RecipeError, match=words):
        parse_recipe({"stages": stages})

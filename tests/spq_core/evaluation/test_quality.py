import math

import pytest
import torch
from transformers import AutoModelForCausalLM

from spq_core.errors import NumericalError
from spq_core.evaluation.quality import score_windows
from tests.models import save_tiny, some_ids


@pytest.fixture
def models(tmp_path):
    first = AutoModelForCausalLM.from_pretrained(save_tiny(tmp_path / "a")).eval()
    second = AutoModelForCausalLM.from_pretrained(tmp_path / "a").eval()
    with torch.no_grad():
        second.model.layers[0].mlp.up_proj.weight.mul_(0.2)
    return {"other": second, "source": first}


def test_matches_a_plain_computation(models):
    windows = torch.cat([some_ids(30), some_ids(30).flip(1)])
    scores = score_windows(models, windows, reference="source")
    nll, kl, same = [], [], []
    with torch.no_grad():
        for window in windows:
            p = models["source"](window[None]).logits[0, :-1].double().log_softmax(-1)
            q = models["other"](window[None]).logits[0, :-1].double().log_softmax(-1)
            nll += (-q[torch.arange(29), window[1:]]).tolist()
            kl += (p.exp() * (p - q)).sum(-1).tolist()
            same += (p.argmax(-1) == q.argmax(-1)).tolist()
    other = scores["other"]
    assert other["tokens"] == 58
    assert other["perplexity"] == pytest.approx(math.exp(sum(nll) / 58), rel=1e-5)
    assert other["kl"] == pytest.approx(sum(kl) / 58, rel=1e-4)
    assert other["top1"] == pytest.approx(sum(same) / 58)


def test_a_model_agrees_with_itself(models):
    twice = {"source": models["source"], "again": models["source"]}
    scores = score_windows(twice, some_ids(30), reference="source")
    assert scores["again"]["kl"] == pytest.approx(0, abs=1e-6)
    assert scores["again"]["top1"] == 1.0
    assert scores["source"]["kl"] is None


def test_a_ruined_model_is_an_error_not_a_figure(models):
    with torch.no_grad():
        models["other"].model.norm.weight.fill_(float("nan"))
    with pytest.raises(NumericalError, match="other"):
        score_windows(models, some_ids(30), reference="source")


def test_errors_are_those_of_repeated_samples_of_windows(models):
    """The oracle is the bootstrap: windows drawn again and again from those that were scored."""
    generator = torch.Generator().manual_seed(0)
    windows = torch.randint(3, 250, (60, 20), generator=generator)
    scores = score_windows(models, windows, reference="source")
    one_by_one = [score_windows(models, window[None], reference="source") for window in windows]

    def drawn(name, figure):
        values = torch.tensor([scores[name][figure] for scores in one_by_one]).double()
        picks = torch.randint(0, 60, (4000, 60), generator=generator)
        return values[picks].mean(dim=1)  # windows are of one length

    for figure in ("kl", "top1"):
        expected = float(drawn("other", figure).std())
        assert scores["other"][f"{figure}_se"] == pytest.approx(expected, rel=0.06)
    logs = torch.tensor([math.log(one["other"]["perplexity_ratio"]) for one in one_by_one])
    picks = torch.randint(0, 60, (4000, 60), generator=generator)
    expected = float(logs[picks].mean(dim=1).exp().std())
    assert scores["other"]["perplexity_ratio_se"] == pytest.approx(expected, rel=0.06)
    ratio = scores["other"]["perplexity"] / scores["source"]["perplexity"]
    assert scores["other"]["perplexity_ratio"] == pytest.approx(ratio, rel=1e-5)
    paired, alone = scores["other"]["perplexity_ratio_se"], scores["other"]["perplexity_se"]
    assert paired < alone / scores["other"]["perplexity"], "hard windows are hard for both"


def test_quantiles_are_those_of_all_tokens(models):
    windows = torch.cat([some_ids(30), some_ids(30).flip(1)])
    scores = score_windows(models, windows, reference="source")["other"]
    kl = []
    with torch.no_grad():
        for window in windows:
            p = models["source"](window[None]).logits[0, :-1].double().log_softmax(-1)
            q = models["other"](window[None]).logits[0, :-1].double().log_softmax(-1)
            kl += (p.exp() * (p - q)).sum(-1).tolist()
    kl.sort()
    assert scores["kl_p50"] == pytest.approx(kl[28], rel=1e-3)
    assert scores["kl_p90"] == pytest.approx(kl[52], rel=1e-3)
    assert scores["kl_p99.9"] == pytest.approx(kl[-1], rel=1e-3)


def test_one_window_has_no_error_and_bytes_are_counted_where_text_is_known(models):
    window = some_ids(30)
    scores = score_windows(models, window, reference="source")
    assert scores["other"]["perplexity_se"] is None
    assert scores["other"]["perplexity_ratio_se"] is None
    assert scores["other"]["bits_per_byte"] is None
    known = score_windows(
        models, window, reference="source", decode=lambda tokens: "é" * len(tokens)
    )
    bits = math.log2(known["other"]["perplexity"]) / 2
    assert known["other"]["bits_per_byte"] == pytest.approx(bits)

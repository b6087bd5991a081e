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

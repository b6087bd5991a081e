import pytest
import torch

from spq_core.streaming.draw import draw_tokens

DRAWS = 40_000


@pytest.mark.parametrize("vocabulary", [1, 7, 256, 700])
def test_tokens_come_as_often_as_they_are_probable(vocabulary):
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.randn(vocabulary, generator=generator).mul(2).softmax(dim=0)
    probabilities[vocabulary // 2 + 1 :: 3] = 0.0
    probabilities /= probabilities.sum()
    drawn = draw_tokens(probabilities.expand(DRAWS, -1), generator)
    assert drawn.shape == (DRAWS, 1)
    counts = torch.bincount(drawn[:, 0], minlength=vocabulary)
    assert counts[probabilities == 0].sum() == 0
    deviation = (probabilities * (1 - probabilities) / DRAWS).sqrt()
    assert ((counts / DRAWS - probabilities).abs() <= 5 * deviation + 1e-9).all()


def test_a_certain_token_is_always_drawn():
    for token in (0, 255, 256, 299):
        certain = torch.zeros(50, 300)
        certain[:, token] = 1.0
        assert (draw_tokens(certain, torch.Generator().manual_seed(1)) == token).all()

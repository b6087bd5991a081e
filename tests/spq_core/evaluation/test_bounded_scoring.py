"""Scoring takes no more memory for many windows than for some."""

import torch

from spq_core.evaluation.predictor import OfLogits
from spq_core.evaluation.quality import Reference, score
from spq_core.memory import rss_bytes
from tests import forked

LENGTH, VOCABULARY = 512, 49152
WARM, MORE = 4, 24
MOST_GROWTH = 512 << 20
"""Twice as much as it varies; with what was once kept between logits it grew by 70 MiB a window."""


class Guessing:
    """A model whose logits are made when they are asked for, as those of a head are."""

    def __init__(self):
        self._base = torch.randn(VOCABULARY)

    def predict(self, windows, after_step=None):
        del after_step
        for at in range(len(windows)):
            yield OfLogits((self._base + at).expand(LENGTH, VOCABULARY))


def score_many() -> None:
    """Exits with 1 if memory grows."""
    torch.set_num_threads(1)
    sizes = []
    windows = torch.randint(VOCABULARY, (WARM + MORE, LENGTH))
    model = Guessing()
    sums = {name: [0.0] * (WARM + MORE) for name in ("perplexity", "bits_per_byte", "kl", "top1")}
    against = Reference("source", lambda: model.predict(windows), sums)
    score("model", model, windows, against=against, after_step=lambda: sizes.append(rss_bytes()))
    grown = max(sizes[WARM:]) - max(sizes[:WARM])
    assert grown < MOST_GROWTH, f"{grown >> 20} MiB"


def test_memory_stays_where_it_is_however_many_windows_there_are():
    assert forked.call(score_many) == 0

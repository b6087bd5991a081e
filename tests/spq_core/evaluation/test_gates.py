import math

import pytest

from spq_core.evaluation.gates import QualityGateError, check_gates
from spq_core.evaluation.loading import LoadFigures
from spq_core.evaluation.measure import Measurement, ModelFigures
from spq_core.evaluation.settings import Gates


def measured(**result):
    """A result measured on two texts; the second one's figures are given."""
    load = LoadFigures(bytes_on_disk=1, resident_bytes=1, load_peak_bytes=1, dtype="bfloat16")

    def figures(**last):
        one = {"perplexity": 20.0, "tokens": 100, "kl": 0.01, "top1": 0.95}
        two = {"perplexity": 30.0, "tokens": 100, "kl": 0.01, "top1": 0.95} | last
        return ModelFigures(
            load=load, quality={"one": one, "two": two}, ppl_paper=None, throughput=None
        )

    return Measurement(
        models={"source": figures(), "result": figures(**result)}, settings={}, peak_rss_bytes=0
    )


LIMITS = Gates(max_perplexity_ratio=1.1, max_kl=0.05, min_top1=0.9)


def test_a_result_within_all_limits_passes():
    check_gates(LIMITS, measured(perplexity=32.9, kl=0.049, top1=0.9), "result", "source")
    check_gates(Gates(), measured(perplexity=math.nan), "result", "source")


@pytest.mark.parametrize(
    ("worse", "words"),
    [
        ({"perplexity": 34.0}, "perplexity ratio.* on two is 1.133, the recipe allows 1.1"),
        ({"perplexity": math.nan}, "perplexity ratio"),
        ({"perplexity": math.inf}, "perplexity ratio"),
        ({"kl": 0.06}, "KL from the source on two is 0.06"),
        ({"kl": math.nan}, "KL from the source"),
        ({"top1": 0.8}, "top-1 agreement with the source on two is 0.8, the recipe allows 0.9"),
    ],
)
def test_each_limit_holds_on_every_text(worse, words):
    with pytest.raises(QualityGateError, match=words):
        check_gates(LIMITS, measured(**worse), "result", "source")

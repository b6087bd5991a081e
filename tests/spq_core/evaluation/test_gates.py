import math

import pytest

from spq_core.evaluation.gates import GateNotMeasuredError, QualityGateError, check_gates
from spq_core.evaluation.loading import LoadFigures
from spq_core.evaluation.measure import Measurement, ModelFigures
from spq_core.evaluation.settings import Gates


def measured(**result):
    """A result measured on two texts; the second one's figures are given."""
    load = LoadFigures(bytes_on_disk=1, resident_bytes=1, load_peak_bytes=1, dtype="bfloat16")

    def figures(**last):
        one = {"perplexity_ratio": 1.0, "kl": 0.01, "top1": 0.95, "kl_p99": 0.2}
        two = one | last
        tasks = {"quiz": {"acc": 0.5, "acc_flips": 0.2}}
        return ModelFigures(
            load=load,
            quality={"one": one, "two": two},
            ppl_paper=None,
            throughput=None,
            tasks=tasks,
        )

    return Measurement(
        models={"source": figures(), "result": figures(**result)}, settings={}, peak_rss_bytes=0
    )


LIMITS = Gates(max_perplexity_ratio=1.1, max_kl=0.05, min_top1=0.9)


def test_a_result_within_all_limits_passes():
    check_gates(LIMITS, measured(perplexity_ratio=1.09, kl=0.049, top1=0.9), "result")
    check_gates(Gates(), measured(perplexity_ratio=math.nan), "result")


@pytest.mark.parametrize(
    ("worse", "words"),
    [
        ({"perplexity_ratio": 1.133}, "perplexity ratio.* on two is 1.133, the recipe allows 1.1"),
        ({"perplexity_ratio": math.nan}, "perplexity ratio"),
        ({"perplexity_ratio": math.inf}, "perplexity ratio"),
        ({"kl": 0.06}, "KL from the source on two is 0.06"),
        ({"kl": math.nan}, "KL from the source"),
        ({"top1": 0.8}, "top-1 agreement with the source on two is 0.8, the recipe allows 0.9"),
    ],
)
def test_each_limit_holds_on_every_text(worse, words):
    with pytest.raises(QualityGateError, match=words):
        check_gates(LIMITS, measured(**worse), "result")


def test_any_figure_may_have_a_limit():
    tail = Gates(max={"kl_p99": 0.5}, min={"top1": 0.9})
    check_gates(tail, measured(), "result")
    with pytest.raises(QualityGateError, match="kl_p99 on two is 0.6, the recipe allows 0.5"):
        check_gates(tail, measured(kl_p99=0.6), "result")
    with pytest.raises(QualityGateError, match="top-1 agreement"):
        check_gates(tail, measured(top1=0.89), "result")
    assert tail.need_measurement
    assert not Gates().need_measurement


def test_a_limit_of_something_that_is_never_measured_is_refused():
    with pytest.raises(ValueError, match="no figure is called 'kl_99'; did you mean kl_p99"):
        Gates(max={"kl_99": 1.0})
    with pytest.raises(ValueError, match="no figure is called 'zzz'; there are: bits_per_byte"):
        Gates(min={"zzz": 1.0})


def test_tasks_have_limits_by_name_and_none_is_passed_over():
    check_gates(Gates(min={"quiz.acc": 0.5}, max={"quiz.acc_flips": 0.2}), measured(), "result")
    with pytest.raises(QualityGateError, match=r"quiz\.acc on its questions is 0\.5"):
        check_gates(Gates(min={"quiz.acc": 0.6}), measured(), "result")
    with pytest.raises(
        GateNotMeasuredError, match=r"quiz\.exact_match .* there are quiz\.acc, quiz"
    ):
        check_gates(Gates(min={"quiz.exact_match": 0.1}), measured(), "result")
    both = Gates(min={"quiz.exact_match": 0.1}, max={"kl": 0.001})
    with pytest.raises(QualityGateError, match="KL from the source"):
        check_gates(both, measured(), "result")  # what is measured is judged first
    assert Gates(min={"quiz.acc": 0.1}, max={"kl_p99.9": 2.0}).tasks == {"quiz"}

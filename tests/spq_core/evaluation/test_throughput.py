import pytest
from transformers import AutoModelForCausalLM

from spq_core.evaluation.throughput import measure_throughput
from tests.models import some_ids


def test_rates_come_from_the_clock_without_the_warm_up_round(tiny_llama):
    model = AutoModelForCausalLM.from_pretrained(tiny_llama).eval()
    # Per trial three readings: start, prompt done, all done. The first trial would be far slower.
    readings = iter([0, 100, 900, 1000, 1002, 1003, 2000, 2004, 2006])
    rates = measure_throughput(
        {"m": model}, some_ids(20)[0], new_tokens=5, trials=2, clock=lambda: float(next(readings))
    )["m"]
    assert (rates.prefill.lowest, rates.prefill.highest) == (5.0, 10.0)
    assert rates.decode.median == pytest.approx((4 / 1 + 4 / 2) / 2)
    assert rates.decode.trials == 2

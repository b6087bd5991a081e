"""Likelihoods with shared beginnings, against each request by itself."""

import random

import pytest
import torch
from transformers import AutoModelForCausalLM

from spq_core.evaluation.tasks.prefixes import SharedPrefixes
from tests.models import FAMILIES, save_tiny

VOCABULARY = 256


def alone(model, context, choice):
    ids = torch.tensor([[*context, *choice]])
    with torch.no_grad():
        log = model(ids).logits[0].double().log_softmax(-1)
    places = torch.arange(len(context) - 1, ids.shape[1] - 1)
    tokens = torch.tensor(choice)
    return float(log[places, tokens].sum()), bool((log[places].argmax(-1) == tokens).all())


def some_requests(seed):
    chance = random.Random(seed)

    def words(count):
        return [chance.randrange(4, VOCABULARY) for _ in range(count)]

    primer = words(20)
    requests = []
    for question in range(5):
        context = [*primer, *words(chance.randint(0, 9))] if question else words(1)
        requests += [
            ("q", context, words(chance.randint(1, 8))) for _ in range(chance.randint(1, 5))
        ]
    requests.append(("again", *requests[0][1:]))
    chance.shuffle(requests)
    return requests


def unasked(_requests):
    raise AssertionError("every request can share")


@pytest.mark.parametrize("family", FAMILIES)
def test_sharing_changes_no_answer(family, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(
        save_tiny(tmp_path / "m", family), dtype=torch.float32
    )
    asked = []

    def otherwise(requests):
        asked.extend(requests)
        return [alone(model, *one[1:]) for one in requests]

    shared = SharedPrefixes(model, 64, otherwise, {})
    for seed in range(3):
        requests = some_requests(seed)
        found = shared.answer(requests)
        wanted = [alone(model, *one[1:]) for one in requests]
        assert [one[0] for one in found] == pytest.approx([one[0] for one in wanted], rel=1e-5)
        assert [one[1] for one in found] == [one[1] for one in wanted]


def test_what_is_said_by_itself_is_known_to_be(tmp_path):
    model = AutoModelForCausalLM.from_pretrained(save_tiny(tmp_path / "m"), dtype=torch.float32)
    context = [5, 6, 7]
    with torch.no_grad():
        said = model.generate(torch.tensor([context]), max_new_tokens=4, do_sample=False)[
            0, 3:
        ].tolist()
    shared = SharedPrefixes(model, 64, unasked, {})
    other = [*said[:-1], (said[-1] + 1) % VOCABULARY]
    assert [one[1] for one in shared.answer([("", context, said), ("", context, other)])] == [
        True,
        False,
    ]


def test_a_shared_beginning_is_passed_through_the_model_once(tmp_path):
    model = AutoModelForCausalLM.from_pretrained(save_tiny(tmp_path / "m"), dtype=torch.float32)
    tokens = []
    model.register_forward_pre_hook(
        lambda _module, _arguments, named: tokens.append(named["input_ids"].numel()),
        with_kwargs=True,
    )
    primer = list(range(10, 40))
    requests = [("", [*primer, last, 9], [choice]) for last in (1, 2, 3) for choice in (4, 5, 6, 7)]
    SharedPrefixes(model, 64, unasked, {}).answer(requests)
    assert sum(tokens) == len(primer) + 3 * 2


def test_what_was_asked_before_is_not_computed_again(tmp_path):
    model = AutoModelForCausalLM.from_pretrained(save_tiny(tmp_path / "m"), dtype=torch.float32)
    runs = []
    model.register_forward_hook(lambda *_arguments: runs.append(1))
    few = [("", [1, 2, 3], [4]), ("", [1, 2, 3], [5, 6])]
    answered = {}
    first = SharedPrefixes(model, 64, unasked, answered).answer(few)
    before = len(runs)
    again = SharedPrefixes(model, 64, unasked, answered)
    assert again.answer([few[1], few[0], few[1]]) == [first[1], first[0], first[1]]
    assert len(runs) == before
    # The same tokens, cut elsewhere, are another question.
    assert again.answer([("", [1, 2], [3, 4])])[0] not in first
    assert len(runs) > before


def test_what_is_too_long_goes_another_way(tmp_path):
    model = AutoModelForCausalLM.from_pretrained(save_tiny(tmp_path / "m"), dtype=torch.float32)
    asked = []

    def otherwise(requests):
        asked.extend(requests)
        return [(-1.0, False)] * len(requests)

    short, long = ("", [1, 2, 3], [4]), ("", [1] * 16, [2])
    found = SharedPrefixes(model, 15, otherwise, {}).answer([long, short, long])
    assert asked == [long]
    assert found[0] == found[2] == (-1.0, False)
    assert found[1][0] == pytest.approx(alone(model, *short[1:])[0], rel=1e-5)

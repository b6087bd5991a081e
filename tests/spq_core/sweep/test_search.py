"""Which members come next and when enough are known, against a search by hand."""

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from spq_core.errors import RecipeError
from spq_core.recipe.catalog import resolve
from spq_core.sweep.document import Objective, parse_sweep, require_measured
from spq_core.sweep.members import members
from spq_core.sweep.search import Tried, is_too_large, next_members, stops

SMALLEST = {
    "objective": {"minimize": "bytes_on_disk", "subject_to": {"kl": {"max": 0.02}}},
    "search": {
        "method": "bisect", "base": "small", "field": "target.bytes_ratio", "low": 0.2, "high": 0.5, "tolerance": 0.01,
    },
}  # fmt: skip


def searched(sweep, figure):
    """All members of a search over a model whose figure is a function of the field."""
    found = list(members(sweep))
    ended = []
    while found:
        rows = [figure(one.fields["target.bytes_ratio"]) for one in found]
        ended += [
            Tried(
                one.fields,
                one.recipe.sha256(),
                True,
                row is None,
                None if row is None else {"kl": row},
            )
            for one, row in zip(found, rows, strict=True)
        ]
        found = list(next_members(sweep, ended, None))
    return [one.fields["target.bytes_ratio"] for one in ended], ended


@given(st.floats(0.21, 0.49), st.floats(0.002, 0.05))
def test_a_bisection_comes_as_near_to_the_bound_as_it_is_told_in_few_steps(bound, tolerance):
    sweep = parse_sweep(SMALLEST | {"search": SMALLEST["search"] | {"tolerance": tolerance}})
    tried, _ = searched(sweep, lambda value: 0.01 if value >= bound else 0.03)
    smallest = min(value for value in tried if value >= bound)
    assert smallest - bound <= tolerance * (1 + 1e-6)
    assert len(tried) <= 3 + math.log2(0.3 / tolerance)
    assert len(set(tried)) == len(tried)


def test_a_bisection_whose_ends_tell_everything_ends_there():
    sweep = parse_sweep(SMALLEST)
    assert searched(sweep, lambda _value: 0.01)[0] == [0.5, 0.2]
    assert searched(sweep, lambda _value: 0.03)[0] == [0.5, 0.2]
    assert searched(sweep, lambda _value: None)[0] == [0.5, 0.2]


def test_a_bisection_waits_for_what_is_under_way_and_looks_at_its_own_members_only():
    sweep = parse_sweep(SMALLEST | {"recipes": ["int8"], "grid": [
        {"base": "balanced", "over": {"target.bytes_ratio": [0.3]}}]})  # fmt: skip
    first = members(sweep)
    assert [one.fields["recipe"] for one in first] == ["int8", "balanced", "small", "small"]
    ended = [
        Tried(one.fields, one.recipe.sha256(), one.number != 4, False, {"kl": 0.01})
        for one in first
    ]
    assert next_members(sweep, ended, None) == ()
    ended[3] = Tried(first[3].fields, first[3].recipe.sha256(), True, False, {"kl": 0.03})
    (more,) = next_members(sweep, ended, None)
    assert more.number == 5
    assert more.fields == {"recipe": "small", "target.bytes_ratio": 0.35}
    assert more.recipe.target.bytes_ratio == 0.35


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"low": 0.5}, "low must be below high"),
        ({"tolerance": 2e-6}, "more than 16 halvings"),
        ({"tolerance": 0}, "greater than or equal to"),
        ({"low": 1e8, "high": 2e8, "tolerance": 1}, "too small beside"),
        ({"field": "target.bites"}, "bites"),
        ({"method": "guess"}, "search"),
    ],
)
def test_what_is_wrong_with_a_search_is_said(change, words):
    with pytest.raises(RecipeError, match=words):
        members(parse_sweep(SMALLEST | {"search": SMALLEST["search"] | change}))
    with pytest.raises(RecipeError, match="limits to keep"):
        parse_sweep({"search": SMALLEST["search"]})
    with pytest.raises(RecipeError, match="cannot be compared"):
        parse_sweep({"recipes": ["int8"], "objective": {"maximize": "decode_tokens_per_second"}})


def known(sweep, figures):
    """Members of a search, by value."""
    found = {one.fields["target.bytes_ratio"]: one for one in members(sweep)}
    return [
        Tried(found[value].fields, found[value].recipe.sha256(), True, row is None, row)
        for value, row in figures.items()
    ]


def test_a_member_that_failed_holds_the_search_and_one_that_its_gates_refuse_does_not():
    sweep = parse_sweep(SMALLEST)
    good, bad = {"kl": 0.01}, {"kl": 0.5}
    assert next_members(sweep, known(sweep, {0.5: good, 0.2: None}), None) == ()
    refused = known(sweep, {0.5: good, 0.2: bad})
    refused[1] = refused[1]._replace(failed=True)
    assert next_members(sweep, refused, None)[0].fields["target.bytes_ratio"] == 0.35


def test_a_search_adds_nothing_to_a_sweep_that_stops():
    figures = {0.5: {"kl": 0.01, "bytes_on_disk": 5}, 0.2: {"kl": 0.5, "bytes_on_disk": 2}}
    assert next_members(parse_sweep(SMALLEST), known(parse_sweep(SMALLEST), figures), None)
    reached = parse_sweep(SMALLEST | {"early_stop": {"target": 5}})
    assert next_members(reached, known(reached, figures), None) == ()


def test_a_search_knows_its_own_members_by_what_they_are():
    """One that another list names already, and not one that differs in something else, too."""
    search = SMALLEST["search"] | {"high": resolve("small").target.bytes_ratio, "low": 0.1}
    same = parse_sweep(SMALLEST | {"recipes": ["small"], "search": search})
    assert len(members(same)) == 2
    ended = [
        Tried(
            one.fields, one.recipe.sha256(), True, False, {"kl": 0.01 if one.number == 1 else 0.5}
        )
        for one in members(same)
    ]
    assert next_members(same, ended, None)[0].fields["target.bytes_ratio"] == 0.19
    other = {"base": "small", "over": {"target.bytes_ratio": [0.3], "calibration.samples": [1]}}
    foreign = parse_sweep(SMALLEST | {"grid": [other]})
    kls = {0.3: 0.9, 0.5: 0.01, 0.2: 0.5}
    assert next_members(foreign, known(foreign, {value: {"kl": kl} for value, kl in kls.items()}), None)[0].fields["target.bytes_ratio"] == 0.35  # fmt: skip


def test_a_search_over_whole_numbers_tries_whole_numbers_and_ends():
    search = {"method": "bisect", "base": "small", "field": "calibration.samples", "low": 1, "high": 9, "tolerance": 0.5}  # fmt: skip
    sweep = parse_sweep(SMALLEST | {"search": search})
    found, tried = list(members(sweep)), []
    while found:
        tried += [
            Tried(one.fields, one.recipe.sha256(), True, False, {"kl": 0.01 if one.fields["calibration.samples"] >= 4 else 0.5})
            for one in found
        ]  # fmt: skip
        found = list(next_members(sweep, tried, None))
    assert [one.fields["calibration.samples"] for one in tried] == [9, 1, 5, 3, 4]


def test_some_members_are_drawn_the_same_each_time():
    ratios = [0.2 + at / 100 for at in range(20)]
    document = {"grid": [{"base": "small", "over": {"target.bytes_ratio": ratios}}]}

    def drawn(seed, samples=5):
        search = {"method": "random", "samples": samples, "seed": seed}
        return [
            one.fields["target.bytes_ratio"] for one in members(parse_sweep(document | {"search": search}))
        ]  # fmt: skip

    assert drawn(1) == drawn(1) != drawn(2)
    assert len(set(drawn(1))) == 5
    assert sorted(drawn(1, samples=30)) == ratios


@given(st.lists(st.one_of(st.none(), st.floats(0.001, 1.0)), max_size=4), st.integers(1, 4))
def test_a_sweep_stops_at_its_target_or_after_failures(figures, most):
    rules = {"target": 0.05, "stop_after_failures": most}
    sweep = parse_sweep({"recipes": ["int8", "small", "balanced", "spq"], "early_stop": rules})
    tried = [
        Tried(member.fields, "", True, value is None, None if value is None else {"kl": value})
        for member, value in zip(members(sweep), figures, strict=False)
    ]
    wanted = None
    if figures.count(None) >= most:
        wanted = "failures"
    if any(value is not None and value <= 0.05 for value in figures):
        wanted = "target"
    assert stops(sweep, tried) == wanted
    assert stops(sweep, [one._replace(ended=False) for one in tried]) is None


@given(st.floats(1, 1000), st.floats(1, 1000), st.floats(0.01, 1.0))
def test_only_what_breaks_a_limit_of_bytes_is_too_large(least, source, most):
    assume(abs(least - most * source) > 1e-6)
    by_share = Objective.model_validate(
        {"minimize": "kl", "subject_to": {"bytes_ratio": {"max": most}, "kl": {"max": 0.0}}}
    )
    assert is_too_large(by_share, least, source) == (least > most * source)
    by_bytes = Objective.model_validate(
        {"minimize": "kl", "subject_to": {"bytes_on_disk": {"max": most}}}
    )
    assert is_too_large(by_bytes, least, source) == (least > most)
    assert not is_too_large(Objective(minimize="kl"), least, source)


def test_what_nobody_measures_decides_nothing():
    sweep = parse_sweep({"recipes": ["int8"], "front": ["bytes_on_disk", "retention"]})
    with pytest.raises(RecipeError, match="retention is measured by tasks"):
        require_measured(sweep, [])
    require_measured(sweep, ["gsm8k"])

"""A result beside plain INT8: never a difference that so much text does not show."""

import pytest

from spq_core.evaluation.verdict import headline, verdict


def rows(size, kl, se=0.0001, windows=32, **int8):
    common = {"dataset": "wikitext2", "windows": windows}
    source = common | {"name": "source", "bytes_on_disk": 1000, "kl": None}
    plain = common | {"name": "int8", "bytes_on_disk": 500, "kl": 0.004, "kl_se": 0.0001} | int8
    return [
        source,
        plain,
        common | {"name": "result", "bytes_on_disk": size, "kl": kl, "kl_se": se},
    ]


@pytest.mark.parametrize(
    ("size", "kl", "word", "says"),
    [
        (400, 0.001, "better", "smaller than plain INT8; nearer to the source"),
        (400, 0.0041, "better", "smaller than plain INT8; no difference in KL shown"),
        (500, 0.001, "better", "as large as plain INT8; nearer to the source"),
        (400, 0.5, "mixed", "smaller than plain INT8; farther from the source"),
        (600, 0.001, "mixed", "larger than plain INT8; nearer to the source"),
        (600, 0.0041, "worse", "larger than plain INT8; no difference in KL shown"),
        (600, 0.5, "worse", "larger than plain INT8; farther from the source"),
        (500, 0.0041, "same", "as large as plain INT8; no difference in KL shown"),
    ],
)
def test_the_word_follows_size_and_distance(size, kl, word, says):
    found = verdict(rows(size, kl))
    assert found.word == word
    assert says in found.sentence
    assert f"{size / 1000:.1%} of the source's bytes" in found.sentence


def test_too_little_text_calls_nothing_better():
    found = verdict(rows(400, 0.198, se=0.031, windows=2))
    assert found.word == "unclear"
    assert "would not show twice the KL" in found.sentence
    assert verdict(rows(400, 0.5, se=0.001, windows=2)).word == "mixed", "so much it does show"


def test_what_cannot_be_told_apart_has_no_verdict():
    for size in (400, 500, 600):
        assert verdict(rows(size, 5.0, windows=1)) is None
        assert verdict(rows(size, 5.0, se=None)) is None


def test_without_plain_int8_there_is_none():
    whole = rows(400, 0.001)
    assert verdict([]) is None
    assert verdict([whole[0], whole[2]]) is None
    assert verdict(whole[:2]) is None, "the result is plain INT8"
    assert verdict(rows(400, None)) is None


def test_headline_figures_of_a_run_that_was_not_measured_are_what_is_known():
    assert headline({"rows": rows(400, 0.001)}) == {
        "bytes_ratio": 0.4,
        "kl": 0.001,
        "perplexity_ratio": None,
    }
    assert headline({"rows": [], "compression": {"ratio_to_source": 0.3}})["bytes_ratio"] == 0.3
    assert headline({})["bytes_ratio"] is None

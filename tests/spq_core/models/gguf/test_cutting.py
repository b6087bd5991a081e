"""Which of llama.cpp's ways of cutting text is a tokenizer's."""

import json

import pytest
from tokenizers import Regex, pre_tokenizers

from spq_core.errors import TokenizerError
from spq_core.models.gguf.cutting import LLAMA3, QWEN2, TEKKEN, cutting_of
from tests.models import byte_tokenizer


def document(*steps, ignore_merges=False):
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(list(steps))
    found = json.loads(tokenizer.backend_tokenizer.to_str())
    found["model"]["ignore_merges"] = ignore_merges
    return found


def split(expression):
    return pre_tokenizers.Split(Regex(expression), behavior="isolated")


BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
WORDS = pre_tokenizers.ByteLevel(add_prefix_space=False)


@pytest.mark.parametrize(
    ("steps", "ignore_merges", "name"),
    [
        ((WORDS,), False, "gpt-2"),
        ((pre_tokenizers.Digits(individual_digits=True), WORDS), False, "smollm"),
        ((split(LLAMA3), BYTES), True, "llama-bpe"),
        ((split(LLAMA3), BYTES), False, "smaug-bpe"),
        ((split(QWEN2), BYTES), False, "qwen2"),
        ((split(TEKKEN), BYTES), True, "tekken"),
    ],
)
def test_the_same_expressions_have_a_name(steps, ignore_merges, name):
    assert cutting_of(document(*steps, ignore_merges=ignore_merges)) == name


@pytest.mark.parametrize(
    ("steps", "ignore_merges", "said"),
    [
        ((split(r"\w+"), BYTES), False, r"\w+"),
        ((pre_tokenizers.Digits(individual_digits=False), WORDS), False, "numbers then words"),
        ((pre_tokenizers.ByteLevel(add_prefix_space=True),), False, "a space in front"),
        ((pre_tokenizers.Whitespace(),), False, "Whitespace as it is set here"),
        ((split(QWEN2), BYTES), True, "makes whole words without merging"),
        ((split(TEKKEN), BYTES), False, "does not make whole words"),
    ],
)
def test_others_are_refused_by_what_they_do(steps, ignore_merges, said):
    with pytest.raises(TokenizerError, match="profile gguf") as refusal:
        cutting_of(document(*steps, ignore_merges=ignore_merges))
    assert said in str(refusal.value)

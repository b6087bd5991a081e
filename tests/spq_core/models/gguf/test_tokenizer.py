"""Tokenizers as GGUF files have them."""

import json

import pytest
from tokenizers import processors
from transformers import AutoTokenizer

from spq_core.errors import TokenizerError
from spq_core.models.gguf.tokenizer import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    tokenizer_keys,
)
from tests.models import byte_tokenizer, metaspace_tokenizer


def test_rows_without_a_token_are_unused_and_special_tokens_are_control():
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<tool>"])
    keys = tokenizer_keys(tokenizer, 270)
    kinds, tokens = keys["tokenizer.ggml.token_type"], keys["tokenizer.ggml.tokens"]
    assert (len(kinds), len(tokens)) == (270, 270)
    assert kinds[:3] == [CONTROL] * 3
    assert kinds[tokenizer.convert_tokens_to_ids("A")] == NORMAL
    assert kinds[tokenizer.convert_tokens_to_ids("<tool>")] == USER_DEFINED
    assert (kinds[-1], tokens[-1]) == (UNUSED, "[PAD269]")
    assert keys["tokenizer.ggml.bos_token_id"] == tokenizer.bos_token_id
    assert keys["tokenizer.ggml.add_bos_token"] is False


def test_sentencepiece_scores_are_in_the_order_of_merges(tmp_path):
    metaspace_tokenizer(tmp_path, "the cat sat on the mat and the cat ran")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    keys = tokenizer_keys(tokenizer, len(tokenizer))
    tokens, scores = keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.scores"]
    kinds = keys["tokenizer.ggml.token_type"]
    assert keys["tokenizer.ggml.model"] == "llama"
    assert keys["tokenizer.ggml.add_space_prefix"] is True
    assert keys["tokenizer.ggml.add_bos_token"] is True
    assert kinds[tokens.index("<unk>")] == UNKNOWN
    assert kinds[tokens.index("<0x0A>")] == BYTE
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    ranked = [scores[tokens.index("".join(pair))] for pair in merges]
    assert ranked == sorted(ranked, reverse=True)
    assert len(set(ranked)) == len(merges) > 5


def test_the_chat_template_and_the_other_end_of_a_text_go_along():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    keys = tokenizer_keys(tokenizer, 259, ends=(tokenizer.eos_token_id, 7))
    assert keys["tokenizer.chat_template"] == tokenizer.chat_template
    assert keys["tokenizer.ggml.eot_token_id"] == 7


def test_what_begins_every_text_otherwise_is_refused():
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<pad> $A", special_tokens=[("<pad>", 0)]
    )
    with pytest.raises(TokenizerError, match="begins every text"):
        tokenizer_keys(tokenizer, 259)

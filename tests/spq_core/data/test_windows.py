"""Windows of tokens, with and without a token that opens texts."""

import torch
from transformers import AutoTokenizer

from spq_core.data.texts import builtin_text
from spq_core.data.windows import consecutive_windows, first_tokens, spread_windows
from tests.models import byte_tokenizer, metaspace_tokenizer

TEXT = builtin_text().evaluation[:20_000]


def opened(tmp_path):
    metaspace_tokenizer(tmp_path, TEXT)
    return AutoTokenizer.from_pretrained(tmp_path)


def test_every_window_begins_as_texts_begin(tmp_path):
    tokenizer = opened(tmp_path)
    whole = tokenizer(TEXT)["input_ids"]
    windows = consecutive_windows(tokenizer, TEXT, 64, None)
    assert whole[0] == tokenizer.bos_token_id
    assert (windows[:, 0] == tokenizer.bos_token_id).all()
    assert windows[:, 1:].flatten().tolist() == whole[1 : 1 + 63 * len(windows)]
    assert (spread_windows(tokenizer, TEXT, 64, 5)[:, 0] == tokenizer.bos_token_id).all()


def test_windows_of_a_tokenizer_that_opens_with_nothing_are_as_they_were():
    tokenizer = byte_tokenizer()
    whole = tokenizer(TEXT)["input_ids"]
    windows = consecutive_windows(tokenizer, TEXT, 64, 10)
    assert windows.flatten().tolist() == whole[:640]


def test_first_tokens_are_as_the_tokenizer_gives_them(tmp_path):
    tokenizer = opened(tmp_path)
    wanted = torch.tensor(tokenizer(TEXT)["input_ids"][:30])
    assert torch.equal(first_tokens(tokenizer, TEXT, 30), wanted)

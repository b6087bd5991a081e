"""GGUF files beside other models; runs where llama.cpp is installed."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from spq_core.evaluation.gguf import GgufModel
from spq_core.evaluation.quality import score_windows
from spq_core.evaluation.throughput import measure_throughput
from tests.models import save_tiny, some_ids

pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
gguf = pytest.importorskip("gguf")


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """One float32 Llama as a checkpoint and as a GGUF file, written by llama.cpp's own library."""
    folder = tmp_path_factory.mktemp("gguf")
    model = AutoModelForCausalLM.from_pretrained(save_tiny(folder / "tiny", vocabulary=512)).eval()
    write_gguf(model, folder / "tiny.gguf")
    return model, GgufModel(folder / "tiny.gguf", 128)


def test_logits_of_all_positions_are_those_of_the_checkpoint(both):
    model, same = both
    ids = some_ids(60)
    with torch.no_grad():
        wanted = model(ids).logits
    found = same(input_ids=ids).logits
    assert found.shape == wanted.shape
    assert (found - wanted).norm() < 1e-2 * wanted.norm()
    assert score_windows({"a": model, "b": same}, ids, reference="a")["b"]["kl"] < 1e-4


def test_decoding_goes_on_from_what_was_read(both):
    _, model = both
    ids = some_ids(20)
    whole = model(input_ids=ids).logits[0, -1]
    begun = model(input_ids=ids[:, :19])
    last = model(input_ids=ids[:, 19:], past_key_values=begun.past_key_values).logits[0, -1]
    assert torch.allclose(last, whole, atol=1e-3)
    rates = measure_throughput({"m": model}, ids[0], new_tokens=3, trials=1)["m"]
    assert rates.decode.median > 0


def write_gguf(model, file):
    """Write the tensors of a Llama under GGUF's names, rotary rows in llama.cpp's order."""
    config = model.config
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"t{n}" for n in range(config.vocab_size)])
    writer.add_token_scores([0.0] * config.vocab_size)
    writer.add_token_types([1] * config.vocab_size)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, tensor in model.state_dict().items():
        count = heads.get(name.split(".")[-2])
        rows = (
            tensor if count is None else tensor.view(count, 2, -1, tensor.shape[1]).transpose(1, 2)
        )
        ordered = np.asarray(rows.reshape(tensor.shape))
        writer.add_tensor(names.get_name(name, (".weight",)), ordered)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

"""Writes a tiny Llama as a GGUF file, as llama.cpp's converter does."""

from pathlib import Path

import gguf
import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}  # fmt: skip
WHOLE = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
}


def write_gguf(source: Path, target: Path, kind: gguf.GGMLQuantizationType) -> None:
    """Write a llama checkpoint with tied embeddings and its byte tokenizer, and one token more; matrices in one type."""
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    config, tokenizer = model.config, AutoTokenizer.from_pretrained(source)
    writer = gguf.GGUFWriter(target, "llama")
    writer.add_name("tiny")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([*tokenizer.convert_ids_to_tokens(range(len(tokenizer))), "ab"])
    writer.add_token_types([3, 3, 3] + [1] * (len(tokenizer) - 2))
    writer.add_token_merges(["a b"])  # a reader wants one
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for name, value in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        stored, own = WHOLE.get(name, ""), ""
        if not stored:
            _, _, number, rest = name.split(".", 3)
            own = NAMES[rest.removesuffix(".weight")]
            stored = f"blk.{number}.{own}.weight"
        numbers = value.numpy()
        if own in heads:  # the two halves of each head's rotation become neighbours
            count = heads[own]
            halves = numbers.reshape(count, 2, -1, numbers.shape[1])
            numbers = halves.swapaxes(1, 2).reshape(numbers.shape)
        if numbers.ndim == 1:
            writer.add_tensor(stored, numbers.astype(np.float32))
        else:
            codes = gguf.quantize(np.ascontiguousarray(numbers), kind)
            writer.add_tensor(stored, codes, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

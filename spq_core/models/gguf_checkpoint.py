"""Write a GGUF file as an ordinary bfloat16 checkpoint folder."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging


def write_checkpoint(gguf_folder: Path, gguf_file: str, target: Path) -> None:
    """Dequantize `gguf_file` and save it as safetensors with its tokenizer.

    The weights stay on the GGUF's grid: fit for showing the service, not for claims below 8 bits.
    """
    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(
        gguf_folder, gguf_file=gguf_file, dtype=torch.float32
    )
    tokenizer = AutoTokenizer.from_pretrained(gguf_folder, gguf_file=gguf_file)
    # What is saved is no GGUF any more; transformers would refuse to save it as one.
    model.config.__dict__.pop("quantization_config", None)
    model.config.__dict__.pop("_name_or_path", None)
    model.hf_quantizer, model.is_quantized = None, False
    model.to(torch.bfloat16).save_pretrained(target)
    tokenizer.save_pretrained(target)

"""How GGUF files are named, and what they say of themselves, as hubs and clients read it. Free of torch.

The last part of the name must be one that llama.cpp, Ollama and the Hub know (huggingface.js `gguf.ts`, llama.cpp `common/download.cpp`);
our own name stands before it.
"""

import re
from collections.abc import Mapping

FILE_TYPES: dict[str, tuple[str, int]] = {
    "Q3_K": ("Q3_K_S", 11), "IQ4_XS": ("IQ4_XS", 30), "Q4_0": ("Q4_0", 2), "IQ4_NL": ("IQ4_NL", 25), "Q4_K": ("Q4_K_S", 14),
    "Q4_1": ("Q4_1", 3), "Q5_0": ("Q5_0", 8), "Q5_K": ("Q5_K_S", 16), "Q5_1": ("Q5_1", 9), "Q6_K": ("Q6_K", 18), "Q8_0": ("Q8_0", 7),
}  # fmt: skip
"""Of files with one type in their layers: the label, and llama.cpp's number for it (`llama_ftype`)."""
MIXED: tuple[tuple[float, str, int], ...] = (
    (4.0, "Q3_K_M", 12), (5.2, "Q4_K_M", 15), (6.0, "Q5_K_M", 17), (7.5, "Q6_K", 18), (99.0, "Q8_0", 7),
)  # fmt: skip
"""Of files with several: the label of llama.cpp's own mixture of about as many bits a weight, from so many bits down."""
UNQUANTIZED = {
    "torch.float32": ("F32", 0),
    "torch.float16": ("F16", 1),
    "torch.bfloat16": ("BF16", 32),
}
THOUSAND = 1000


def label_of(weights: Mapping[str, int], bits: float, dtype: str) -> tuple[str, int]:
    """The label and its number.

    Args:
        weights: how many of the decoder layers' are in which type.
        bits: of a weight, over all of them.
        dtype: of weights that are in none.
    """
    if not weights:
        return UNQUANTIZED[dtype]
    if len(weights) == 1:
        return FILE_TYPES[next(iter(weights))]
    label, number = next((label, number) for most, label, number in MIXED if bits < most)
    return label, number


def file_name(source: str, label: str) -> str:
    """Of the only file: the model's own name, ours, the label."""
    base = re.sub(r"[^\w.-]+", "-", source.rpartition("/")[2]).strip("-.") or "model"
    return f"{base}-spq-{label}.gguf"


def size_label(parameters: int) -> str:
    """How large the model is, in two digits: 135M, 1.1B."""
    for unit, name in ((THOUSAND**4, "T"), (THOUSAND**3, "B"), (THOUSAND**2, "M"), (THOUSAND, "K")):
        if parameters >= unit:
            size = parameters / unit
            return f"{size:.1f}{name}" if size < 10 and round(size, 1) % 1 else f"{size:.0f}{name}"  # noqa: PLR2004
    return str(parameters)


def general_keys(source: str, parameters: int, file_type: int) -> dict[str, str | int]:
    """What `general.*` says."""
    name = source.rpartition("/")[2]
    keys: dict[str, str | int] = {
        "general.type": "model",
        "general.name": name,
        "general.size_label": size_label(parameters),
        "general.quantized_by": "spq",
        "general.quantization_version": 2,
        "general.file_type": file_type,
    }
    if source.count("/") == 1:
        keys |= {
            "general.base_model.count": 1,
            "general.base_model.0.name": name,
            "general.base_model.0.organization": source.partition("/")[0],
            "general.base_model.0.repo_url": f"https://huggingface.co/{source}",
        }
    return keys

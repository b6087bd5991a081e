"""A GGUF file as an ordinary bfloat16 checkpoint: settings and tokenizer from its metadata, weights as its codes say."""

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch
from gguf import GGUFReader
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint
from transformers.utils import logging
from transformers.utils.quantization_config import GgufConfig

from spq_core.errors import MemoryNeededError, UnsafeModelError
from spq_core.memory import memory_limit
from spq_core.models.architectures import check_config
from spq_core.models.model_folder import is_terms_file, names_in
from spq_core.models.reading import GGUF, Reading

MAGIC = b"GGUF"
PART = re.compile(r"-\d{5}-of-\d{5}\.gguf$")
BYTES_A_WEIGHT = 4.0
"""While transformers widens a file: all weights once in 16 bits, and again while they are written."""
NOT_QUANTIZED = frozenset({"F32", "F16", "BF16", "F64"})


def write_checkpoint(gguf_folder: Path, gguf_file: str, target: Path) -> None:
    """Dequantize `gguf_file` and save it as safetensors with its tokenizer.

    The weights stay on the GGUF's grid: fit for showing the service, not for claims below 8 bits.
    """
    logging.disable_progress_bar()
    # Packed weights would be computed by kernels that are code from the Hub.
    model = AutoModelForCausalLM.from_pretrained(
        gguf_folder, gguf_file=gguf_file, dtype=torch.bfloat16,
        quantization_config=GgufConfig(gguf_file=gguf_file, dequantize=True),
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(gguf_folder, gguf_file=gguf_file)
    # What is saved is no GGUF any more; transformers would refuse to save it as one.
    model.config.__dict__.pop("quantization_config", None)
    model.config.__dict__.pop("_name_or_path", None)
    model.hf_quantizer, model.is_quantized = None, False
    model.to(torch.bfloat16).save_pretrained(target)
    tokenizer.save_pretrained(target)


def write_gguf_copy(folder: Path, reading: Reading, copy: Path) -> list[str]:
    """Write the model in a GGUF file, with the folder's licences.

    Args:
        folder: with the file that `reading` names.
        copy: an existing empty folder.

    Returns:
        notes for the report: the grids that weights lie on.

    Raises:
        UnsafeModelError, UnsupportedModelError: it is not one we are willing to open.
        MemoryNeededError: it is larger than what a run may hold.
    """
    name = str(reading.file)
    grids, weights = _judged(folder / name, reading)
    limit = memory_limit()
    if limit is not None and weights * BYTES_A_WEIGHT > limit:
        raise MemoryNeededError(round(weights * BYTES_A_WEIGHT), limit)
    try:
        write_checkpoint(folder, name, copy)
    except OSError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever an untrusted file makes of its readers
        raise UnsafeModelError(
            "unsupported_architecture",
            f"{name}: transformers cannot read it ({str(error)[:200]}); name the original model, in safetensors",
        ) from None
    for side in names_in(folder):
        if is_terms_file(side) and (folder / side).is_file():
            (copy / side).parent.mkdir(exist_ok=True)
            (copy / side).symlink_to((folder / side).resolve())
    told, size = _told(dict(grids.most_common())), (folder / name).stat().st_size
    return [
        f"{name}: weights lie on the grids of its tensors ({told}), {size:,} bytes in the file and "
        f"{weights * 2:,} widened to bfloat16; figures and ratios are against those"
    ]


def _told(grids: Mapping[str, int]) -> str:
    return ", ".join(f"{count} × {kind}" for kind, count in grids.items())


def _judged(path: Path, reading: Reading) -> tuple[Counter[str], int]:
    """How many tensors are of which type, and the number of weights.

    Raises:
        UnsafeModelError, UnsupportedModelError: it is not one we are willing to open.
    """
    if not path.name.endswith(GGUF) or not path.is_file():
        raise UnsafeModelError(
            "unsupported_architecture", f"{path.parent.name} has no GGUF file {path.name!r}"
        )
    if PART.search(path.name):
        raise UnsafeModelError(
            "unsafe_format",
            f"{path.name} is a part of a file; merge the parts (llama-gguf-split --merge) and name the whole",
        )
    with path.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise UnsafeModelError("unsafe_format", f"{path.name} is not a GGUF file")
    try:
        reader = GGUFReader(path)
        config = dict(load_gguf_checkpoint(str(path))["config"])
    except Exception as error:  # noqa: BLE001 - the same
        raise UnsafeModelError(
            "unsafe_format", f"{path.name} is not a GGUF file that can be read: {str(error)[:200]}"
        ) from None
    check_config({key: value for key, value in config.items() if not key.startswith("_")})
    grids = Counter(tensor.tensor_type.name for tensor in reader.tensors)
    quantized = {kind: count for kind, count in grids.items() if kind not in NOT_QUANTIZED}
    if quantized and not reading.allow_requantize:
        told = _told(quantized)
        raise UnsafeModelError(
            "already_quantized",
            f"{path.name}: weights are quantized already ({told}), and compressing them again hurts: name the model they "
            "were made from, or set allow_requantize (--allow-requantize) to have them widened and compressed all the same",
        )
    return grids, sum(int(tensor.n_elements) for tensor in reader.tensors)

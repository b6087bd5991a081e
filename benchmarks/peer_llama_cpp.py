"""llama.cpp's Q8_0 form of SmolLM2, behind the call that is timed. Needs llama-cpp-python."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import torch
from llama_cpp import Llama

from benchmarks.model import CACHE
from worker.demo import GGUF_FILE, PYPI_MODEL


class LlamaCpp:
    """llama.cpp behind the call that is timed."""

    device = torch.device("cpu")

    def __init__(self, file: Path) -> None:
        self.model = Llama(
            str(file), n_ctx=1024, n_batch=512, n_threads=torch.get_num_threads(),
            n_threads_batch=torch.get_num_threads(), verbose=False, logits_all=False,
        )  # fmt: skip
        self.bytes = file.stat().st_size

    def __call__(
        self, input_ids: torch.Tensor, past_key_values: Any = None, **_: Any
    ) -> SimpleNamespace:
        if past_key_values is None:
            self.model.reset()
        self.model.eval(input_ids[0].tolist())
        pointer = self.model._ctx.get_logits()  # noqa: SLF001
        logits = np.ctypeslib.as_array(pointer, shape=(1, 1, self.model.n_vocab())).copy()
        return SimpleNamespace(logits=torch.from_numpy(logits), past_key_values=self)


def q8_0_file() -> Path:
    """The shipped GGUF file with its matrices rounded to Q8_0."""
    target = CACHE / "smollm2-q8_0.gguf"
    if target.is_file():
        return target
    spec = importlib.util.find_spec(PYPI_MODEL)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"{PYPI_MODEL} is not installed")
    reader = gguf.GGUFReader(Path(spec.submodule_search_locations[0]) / GGUF_FILE)
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(target, architecture)
    for name, field in reader.fields.items():
        if name == "general.architecture" or name.startswith("GGUF."):
            continue
        kind = field.types[0]
        sub = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        value = field.contents()
        if name == "general.file_type":
            value = int(gguf.LlamaFileType.MOSTLY_Q8_0)
        writer.add_key_value(name, value, kind, sub)
    eight = gguf.GGMLQuantizationType.Q8_0
    for tensor in reader.tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        if values.ndim == 1:
            writer.add_tensor(tensor.name, values)
        else:
            writer.add_tensor(tensor.name, gguf.quantize(values, eight), raw_dtype=eight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def load(source: Path) -> LlamaCpp:
    """The shipped file; `source` is the same model as a checkpoint."""
    del source
    return LlamaCpp(q8_0_file())

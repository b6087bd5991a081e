"""GGUF files through llama.cpp, behind the call that other models answer to. Needs llama-cpp-python."""

from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from spq_core.errors import EvaluationError

SUFFIX = ".gguf"
BATCH = 512


class LanguageModel(Protocol):
    """What measuring asks of a model; transformers' models answer to it."""

    @property
    def device(self) -> torch.device:
        """Where token ids are to be put."""

    @property
    def __call__(self) -> Any: ...


class GgufModel:
    """A GGUF file, run by llama.cpp; logits of every position, as transformers gives them.

    Its cache is one for all calls: `past_key_values` is the model itself, or None to start anew.

    Raises:
        EvaluationError: llama-cpp-python is not installed, or refuses the file.
    """

    device = torch.device("cpu")

    def __init__(self, file: Path, positions: int) -> None:
        llama_cpp = _llama_cpp()
        threads = torch.get_num_threads()
        try:
            self._llama = llama_cpp.Llama(
                str(file), n_ctx=positions, n_batch=BATCH, n_threads=threads, n_threads_batch=threads,
                logits_all=True, verbose=False,
            )  # fmt: skip
        except ValueError as error:
            raise EvaluationError(f"{file.name}: llama.cpp cannot load it: {error}") from None
        self.resident_bytes: int = llama_cpp.llama_model_size(self._llama.model)
        kind = llama_cpp.llama_ftype_name(llama_cpp.llama_model_ftype(self._llama.model))
        self.dtype = kind.decode()

    def __call__(
        self, *, input_ids: Int64[Tensor, "1 n"], past_key_values: Any = None, **_: Any
    ) -> SimpleNamespace:
        """Logits of shape (1, n, vocab) in float32."""
        if past_key_values is None:
            self._llama.reset()
        ids = input_ids[0].tolist()
        self._llama.eval(ids)
        end = self._llama.n_tokens
        logits = torch.from_numpy(np.array(self._llama.scores[end - len(ids) : end]))
        return SimpleNamespace(logits=logits[None], past_key_values=self)

    def tokens(self, text: str) -> list[int]:
        """Of a text, with what is put around every text."""
        found: list[int] = self._llama.tokenize(text.encode(), add_bos=True, special=True)
        return found


def has_gguf_reader() -> bool:
    """Whether llama-cpp-python is installed."""
    return find_spec("llama_cpp") is not None


def require_gguf_reader() -> None:
    """Find out before other models are measured.

    Raises:
        EvaluationError: llama-cpp-python is not installed.
    """
    _llama_cpp()


def _llama_cpp() -> Any:
    try:
        import llama_cpp  # noqa: PLC0415 - no part of this package
    except ModuleNotFoundError:
        raise EvaluationError(
            "a GGUF file is measured with llama.cpp: pip install llama-cpp-python"
        ) from None
    return llama_cpp

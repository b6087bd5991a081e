"""llama.cpp behind the call that is timed. Needs llama-cpp-python."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from llama_cpp import Llama


class LlamaCpp:
    """llama.cpp behind the call that is timed."""

    device = torch.device("cpu")

    def __init__(self, file: Path) -> None:
        self.model = Llama(
            str(file), n_ctx=1024, n_batch=512, n_threads=torch.get_num_threads(),
            n_threads_batch=torch.get_num_threads(), verbose=False, logits_all=False,
        )  # fmt: skip

    def __call__(
        self, input_ids: torch.Tensor, past_key_values: Any = None, **_: Any
    ) -> SimpleNamespace:
        if past_key_values is None:
            self.model.reset()
        self.model.eval(input_ids[0].tolist())
        pointer = self.model._ctx.get_logits()  # noqa: SLF001
        logits = np.ctypeslib.as_array(pointer, shape=(1, 1, self.model.n_vocab())).copy()
        return SimpleNamespace(logits=torch.from_numpy(logits), past_key_values=self)

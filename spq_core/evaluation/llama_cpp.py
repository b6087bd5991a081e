"""llama.cpp as its users have it, asked for tokens and predictions: by llama-cpp-python, or by xllamacpp, which comes built."""

import json
import socket
from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol
from urllib.request import Request, urlopen

import torch
from jaxtyping import Float
from torch import Tensor

from spq_core.errors import EvaluationError
from spq_core.evaluation.gguf import GgufModel

PACKAGES = {"llama_cpp": "llama-cpp-python", "xllamacpp": "xllamacpp"}
"""Modules by preference, and what they are called on PyPI."""
SECONDS = 600
LEAST = -1e4
"""Of a log-probability: JSON has no infinity."""


class LlamaCpp(Protocol):
    """A GGUF file, run by llama.cpp."""

    name: str
    """The package that it comes with, and its version."""

    def log_probabilities(self, ids: Sequence[int]) -> Float[Tensor, " vocab"]:
        """Of the token after these."""
        ...

    def tokens(self, text: str) -> list[int]:
        """Of a text, with what is put around every text."""
        ...


def installed() -> str | None:
    """The module that runs llama.cpp here, if there is one that can."""
    return next(
        (
            module
            for module in PACKAGES
            if find_spec(module) is not None and (module != "xllamacpp" or _may_serve())
        ),
        None,
    )


def _may_serve() -> bool:
    """Whether this process may have a socket: in the sandbox of a worker it may not."""
    try:
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
    except OSError:
        return False
    return True


def open_llama_cpp(file: Path, rows: int, positions: int) -> LlamaCpp | None:
    """Load a file; None where no package with llama.cpp is installed.

    Args:
        rows: of the embedding.
        positions: that it is asked for, at most.

    Raises:
        EvaluationError: llama.cpp refuses the file.
    """
    module = installed()
    if module is None:
        return None
    if module == "llama_cpp":
        return _ByLlamaCppPython(file, positions)
    return _ByXllamacpp(file, rows, positions, torch.get_num_threads())


def _name(module: str) -> str:
    package = PACKAGES[module]
    return f"{package} {version(package)}"


class _ByLlamaCppPython:
    def __init__(self, file: Path, positions: int) -> None:
        self.name = _name("llama_cpp")
        self._model = GgufModel(file, positions)
        self.tokens = self._model.tokens

    def log_probabilities(self, ids: Sequence[int]) -> Tensor:
        logits: Tensor = self._model(input_ids=torch.tensor([list(ids)])).logits[0, -1]
        return logits.float().log_softmax(0)


class _ByXllamacpp:
    """It serves HTTP on this machine, whoever asks."""

    def __init__(self, file: Path, rows: int, positions: int, threads: int) -> None:
        import xllamacpp  # noqa: PLC0415 - no part of this package

        self.name, self._rows = _name("xllamacpp"), rows
        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(file)
        parameters.n_ctx = parameters.n_batch = positions
        parameters.warmup, parameters.verbosity = False, 0
        parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads
        parameters.n_parallel = 1
        try:
            self._server = xllamacpp.Server(parameters)
        except RuntimeError as error:
            raise EvaluationError(f"{file.name}: llama.cpp cannot load it: {error}") from None

    def log_probabilities(self, ids: Sequence[int]) -> Tensor:
        # What is sampled does not matter, but half of a character would be waited for.
        letter = self.tokens("a")[-1]
        answer = self._asked(
            "completion",
            {
                "prompt": list(ids), "n_predict": 1, "n_probs": self._rows, "temperature": 0.0, "cache_prompt": False,
                "post_sampling_probs": False, "logit_bias": [[letter, 1000.0]],
            },
        )  # fmt: skip
        found = torch.full((self._rows,), LEAST)
        for one in answer["completion_probabilities"][0]["top_logprobs"]:
            found[one["id"]] = max(one["logprob"], LEAST)
        return found

    def tokens(self, text: str) -> list[int]:
        body = {"content": text, "add_special": True, "parse_special": True}
        found: list[int] = self._asked("tokenize", body)["tokens"]
        return found

    def _asked(self, what: str, body: dict[str, Any]) -> Any:
        request = Request(  # noqa: S310 - an address of this machine
            f"{self._server.listening_address}/{what}", json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )  # fmt: skip
        with urlopen(request, timeout=SECONDS) as answer:  # noqa: S310 - the same
            return json.load(answer)

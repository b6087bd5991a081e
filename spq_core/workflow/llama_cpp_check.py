"""Program: let llama.cpp load a GGUF artifact, and compare what it reads and predicts with what the file means.

    python -m spq_core.workflow.llama_cpp_check FOLDER THREADS

It prints one JSON object: `runtime`, which is empty where no package with llama.cpp is installed, the largest relative difference of log-probabilities
under `logits`, and under `text` what is read otherwise; or `error`.
"""

import json
import os
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from spq_core.artifact.gguf_file import gguf_file, open_gguf
from spq_core.artifact.same_text import SAMPLES
from spq_core.errors import ArtifactError
from spq_core.evaluation.llama_cpp import LlamaCpp, open_llama_cpp
from spq_core.evaluation.predictor import StreamedPredictor
from spq_core.models.tokenizer import load_tokenizer

POSITIONS = 128
PREFIXES = (1, 2, 5, 16, 60)
"""How many tokens predictions are compared after."""
SHOWN = 3


def compare(folder: Path) -> dict[str, Any]:
    """Load it here and there."""
    file = gguf_file(folder)
    if file is None:
        raise ArtifactError(f"{folder.name} holds no single GGUF file beside a config.json")
    blocked = open_gguf(folder, file)
    rows = int(blocked.skeleton.text_config.vocab_size)
    there = open_llama_cpp(file, rows, POSITIONS)
    if there is None:
        return {"runtime": "", "logits": None, "text": []}
    tokenizer = load_tokenizer(folder)
    ids = tokenizer("".join(SAMPLES))["input_ids"][: max(PREFIXES)]
    ids = [one for one in ids if one < rows]
    predicted = next(iter(StreamedPredictor(blocked).predict(torch.tensor([ids]))))
    here = predicted.logits(slice(None)).log_softmax(1)
    worst = max(
        _difference(there.log_probabilities(ids[:count]), here[count - 1])
        for count in PREFIXES
        if count <= len(ids)
    )
    text = list(islice(_read_otherwise(there, tokenizer, rows), SHOWN))
    return {"runtime": there.name, "logits": worst, "text": text}


def _difference(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Of log-probabilities around their mean, relative to their spread."""
    found, wanted = found - found.mean(), wanted - wanted.mean()
    return float((found - wanted).norm() / wanted.norm().clamp(min=1e-30))


def _read_otherwise(
    there: LlamaCpp, tokenizer: PreTrainedTokenizerBase, rows: int
) -> Iterator[str]:
    for text in SAMPLES:
        wanted, found = list(tokenizer(text)["input_ids"]), there.tokens(text)
        if text != text.lstrip() and found != wanted:
            # A text that begins with a space has one in front here, and two in SentencePiece and there.
            wanted, found = list(tokenizer(text.lstrip())["input_ids"]), there.tokens(text.lstrip())
        if found != wanted and all(one < rows for one in wanted):  # a toy has not all of them
            yield f"tokens of {text[:60]!r}: {found[:12]} instead of {wanted[:12]}"


def main() -> None:
    """The program."""
    folder, threads = sys.argv[1:]
    logging.set_verbosity_error()
    torch.set_num_threads(int(threads))
    answer = os.dup(1)
    os.dup2(2, 1)  # llama.cpp writes what it does
    try:
        with torch.no_grad():
            found = compare(Path(folder))
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the answer
        found = {"error": f"{type(error).__name__}: {error}"[:500]}
    os.write(answer, json.dumps(found).encode())


if __name__ == "__main__":
    main()

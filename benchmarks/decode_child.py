"""Program: one model of `decode.py` in a process of its own, timed when asked.

Apart, because the thread pools of GPTQModel and llama.cpp slow down whoever shares their process. It
reads lines of JSON ({"prompt": 64, "new": 32}) and answers each with seconds.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging

FIRST_TOKEN = 100


def load_checkpoint(folder: Path, dtype: str) -> tuple[Any, int]:
    from spq_core.evaluation.loading import resident_bytes

    wanted = "auto" if dtype == "auto" else getattr(torch, dtype)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=wanted).eval()
    return model, resident_bytes(model)


def load_gptqmodel(folder: Path, _: str) -> tuple[Any, int]:
    from gptqmodel import BACKEND, GPTQModel

    model = GPTQModel.load(str(folder), device="cpu", backend=BACKEND.TORCH).model.eval()
    held = [*model.parameters(), *model.buffers()]
    return model, sum({part.data_ptr(): part.nbytes for part in held}.values())


def load_llama_cpp(file: Path, _: str) -> tuple[Any, int]:
    from benchmarks.llama_cpp_model import LlamaCpp

    return LlamaCpp(file), file.stat().st_size


LOADERS = {
    "checkpoint": load_checkpoint, "gptqmodel": load_gptqmodel, "llama_cpp": load_llama_cpp
}  # fmt: skip


@torch.no_grad()
def trial(model: Any, prompt: int, new: int) -> dict[str, float]:
    ids = torch.arange(FIRST_TOKEN, FIRST_TOKEN + prompt)[None]
    start = time.perf_counter()
    output = model(input_ids=ids, use_cache=True)
    token = output.logits[:, -1:].argmax(dim=-1)
    filled = time.perf_counter()
    for _ in range(new - 1):
        output = model(input_ids=token, past_key_values=output.past_key_values, use_cache=True)
        token = output.logits[:, -1:].argmax(dim=-1)
    return {"prefill": filled - start, "decode": time.perf_counter() - filled}


def main() -> None:
    kind, path, dtype = sys.argv[1:]
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries greet on standard output
    model, held = LOADERS[kind](Path(path), dtype)
    about = {"bytes": held, "threads": torch.get_num_threads()}
    print(json.dumps(about), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(trial(model, **json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()

"""GPTQModel's 8-bit form of a model. For an environment of its own: see README.md."""

from pathlib import Path
from typing import Any

from gptqmodel import BACKEND, GPTQModel, QuantizeConfig
from transformers import AutoTokenizer

from benchmarks.model import CACHE
from spq_core.calibration.texts import builtin_text


def load(source: Path) -> Any:
    """GPTQModel's 8-bit form on its CPU kernel."""
    target = CACHE / f"{source.name}-gptqmodel-8"
    if not (target / "config.json").is_file():
        tokenizer = AutoTokenizer.from_pretrained(source)
        lines = [line for line in builtin_text().calibration.split("\n") if len(line) > 80][:32]
        model = GPTQModel.load(str(source), QuantizeConfig(bits=8, group_size=64), device="cpu")
        model.quantize([tokenizer(line) for line in lines], batch_size=1)
        model.save(str(target))
    loaded = GPTQModel.load(str(target), device="cpu", backend=BACKEND.TORCH)
    return loaded.model.eval()

"""Tokens per second of prefill and decoding, models interleaved."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Tensor

from spq_core.evaluation.gguf import LanguageModel

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """Tokens per second over the trials."""

    median: float
    lowest: float
    highest: float
    trials: int

    @classmethod
    def of(cls, rates: list[float]) -> "Rate":
        """Summarise one figure per trial."""
        return cls(
            median=statistics.median(rates),
            lowest=min(rates),
            highest=max(rates),
            trials=len(rates),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Throughput:
    """Speed of one model at batch size 1."""

    prefill: Rate
    """Tokens of the prompt per second."""
    decode: Rate
    """New tokens per second after the first, greedy, with the key-value cache."""


@torch.no_grad()
def measure_throughput(
    models: Mapping[str, LanguageModel],
    prompt: Int64[Tensor, " n"],
    *,
    new_tokens: int,
    trials: int,
    clock: Clock = time.perf_counter,
    after_run: Callable[[str], None] = lambda _name: None,
) -> dict[str, Throughput]:
    """Time each model on the prompt; trials go round the models, so that drift hits all alike.

    One untimed round comes first. `after_run` is told of every run, the untimed ones too.
    """
    prefill: dict[str, list[float]] = {name: [] for name in models}
    decode: dict[str, list[float]] = {name: [] for name in models}
    for trial in range(trials + 1):
        for name, model in models.items():
            prefill_seconds, decode_seconds = _one_trial(model, prompt, new_tokens, clock)
            after_run(name)
            if trial > 0:
                prefill[name].append(len(prompt) / prefill_seconds)
                decode[name].append((new_tokens - 1) / decode_seconds if new_tokens > 1 else 0.0)
    return {
        name: Throughput(prefill=Rate.of(prefill[name]), decode=Rate.of(decode[name]))
        for name in models
    }


def _one_trial(
    model: LanguageModel, prompt: Tensor, new_tokens: int, clock: Clock
) -> tuple[float, float]:
    """Seconds for the prompt, and for the new tokens after the first."""
    ids = prompt[None].to(model.device)
    _wait_for(model)
    start = clock()
    output = model(input_ids=ids, use_cache=True)
    token = output.logits[:, -1:].argmax(dim=-1)
    _wait_for(model)
    filled = clock()
    for _ in range(new_tokens - 1):
        output = model(input_ids=token, past_key_values=output.past_key_values, use_cache=True)
        token = output.logits[:, -1:].argmax(dim=-1)
    _wait_for(model)
    return filled - start, clock() - filled


def _wait_for(model: LanguageModel) -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)

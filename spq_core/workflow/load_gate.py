"""The load gate: what a fresh process loads must compute what the run had in memory."""

import errno
import json
import math
import os
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from spq_core.artifact.blocked import open_blocked
from spq_core.artifact.gguf_file import gguf_file
from spq_core.errors import SpqError
from spq_core.evaluation.speeds import fits
from spq_core.machine import DISK_FULL, HOST_MEMORY
from spq_core.models.weight_files import stored_bytes
from spq_core.workflow.fresh_process import run_fresh

LARGEST_DIFFERENCE = 0.03
"""Of logits in float32, relative to their norm. Floating-point parts are rounded to the source's dtype
when they are stored; a wrong scale, shape, order or tie shows as a difference near one."""
LARGEST_DECODING_DIFFERENCE = 0.1
"""With few tokens, kernels round activations to bfloat16."""
LARGEST_RUNTIME_DIFFERENCE = 0.3
"""Of log-probabilities around their mean. llama.cpp rounds what matrices receive to 8 bits in blocks of 32, which is a few hundredths
(SmolLM2: 0.05 in Q4_0, 0.09 in a mixture); wrong names, rows or positions are near one."""
ROUNDING_MARGIN = 2.0
"""A model that is far from its source can amplify that; so much more than what rounding alone does to the same
weights is allowed."""
SECONDS = 3600


class LoadGateError(SpqError):
    """The artifact does not load, or computes something else than it did in memory."""

    code = "load_gate_failed"


@dataclass(frozen=True, slots=True)
class LoadCheck:
    """Relative differences between the loaded artifact and the run's own result."""

    embedding: float
    logits: float
    decoding: float
    """Of logits of few tokens, which go through the decoding kernels."""
    runtime: str = ""
    """Of a GGUF file: the package with llama.cpp that loaded it; empty where none is installed."""
    runtime_logits: float | None = None
    """The largest relative difference between the log-probabilities of llama.cpp and those of the file's own numbers."""


def check_loads(folder: Path, probe_file: Path, source: Path | None = None) -> LoadCheck:
    """Load the artifact in a process of its own, compare it with the probe, and generate.

    Args:
        source: the model folder whose tokenizer, templates and generation settings it must have.

    Raises:
        LoadGateError: saying what went wrong there.
        OSError, MemoryError: the machine had no room for it, which says nothing about the artifact.
    """
    program = "spq_core.artifact.load_check"
    large = not fits(stored_bytes(folder)) and open_blocked(folder) is not None
    if large or gguf_file(folder) is not None:
        program = "spq_core.workflow.blocked_load_check"
    arguments = [str(folder), str(probe_file), str(torch.get_num_threads())]
    if source is not None:
        arguments.append(str(source))
    answer = _answer_of(program, arguments)
    if "error" in answer:
        _blame_the_machine(answer.get("machine"), answer["error"])
        raise LoadGateError(f"the artifact does not load in a fresh process: {answer['error']}")
    found = judged(answer)
    return found if gguf_file(folder) is None else _in_llama_cpp(folder, found)


def _answer_of(program: str, arguments: list[str]) -> dict[str, Any]:
    """What a program in a fresh process says of the artifact."""
    try:
        done = run_fresh(program, arguments, SECONDS)
    except subprocess.TimeoutExpired:
        raise LoadGateError(f"loading the artifact took more than {SECONDS} s") from None
    try:
        answer: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        _blame_the_machine(_lacking(done), done.stderr[-300:])
        raise LoadGateError(
            f"the process that loads the artifact ended with {done.returncode}: {done.stderr[-300:]}"
        ) from None
    return answer


def _in_llama_cpp(folder: Path, found: LoadCheck) -> LoadCheck:
    """Let llama.cpp load a GGUF artifact, where there is one."""
    program = "spq_core.workflow.llama_cpp_check"
    answer = _answer_of(program, [str(folder), str(torch.get_num_threads())])
    if "error" in answer:
        raise LoadGateError(f"llama.cpp does not load the file: {answer['error']}")
    if answer["text"]:
        raise LoadGateError(
            f"llama.cpp does not read text as the source does: {'; '.join(answer['text'])}"
        )
    difference = answer["logits"]
    if difference is not None and not difference <= LARGEST_RUNTIME_DIFFERENCE:
        raise LoadGateError(
            f"llama.cpp's log-probabilities differ by {difference:.3g} of their norm from those of the file's weights; "
            f"at most {LARGEST_RUNTIME_DIFFERENCE:g} is its rounding of activations to 8 bits"
        )
    return replace(found, runtime=answer["runtime"], runtime_logits=difference)


def _lacking(done: "subprocess.CompletedProcess[str]") -> str | None:
    """What the machine lacked, where the process ended without an answer."""
    if os.strerror(errno.ENOSPC) in done.stderr:
        return DISK_FULL
    return HOST_MEMORY if done.returncode == -signal.SIGKILL else None


def _blame_the_machine(lacked: str | None, words: str) -> None:
    """Raise what says so, if the machine is to blame."""
    if lacked == DISK_FULL:
        raise OSError(errno.ENOSPC, f"while the artifact was loaded: {words}")
    if lacked == HOST_MEMORY:
        raise MemoryError(f"the process that loads the artifact got too little memory: {words}")


def judged(answer: Mapping[str, Any]) -> LoadCheck:
    """Compare the differences that `load_check` found with what rounding can cause.

    Raises:
        LoadGateError: one is larger, or text is not read as the source reads it.
    """
    found = LoadCheck(answer["embedding"], answer["logits"], answer["decoding"])
    if answer.get("text"):
        raise LoadGateError(
            f"the artifact does not read text as its source does: {'; '.join(answer['text'])}"
        )
    decoding_limit = max(LARGEST_DECODING_DIFFERENCE, ROUNDING_MARGIN * answer["rounding"])
    for name, value, limit in (
        ("embedding", found.embedding, LARGEST_DIFFERENCE),
        ("logits", found.logits, LARGEST_DIFFERENCE),
        ("decoding logits", found.decoding, decoding_limit),
    ):
        if not math.isfinite(value) or value > limit:
            raise LoadGateError(
                f"loaded in a fresh process, the artifact's {name} differ by {value:.3g} of their "
                f"norm from the run's own; at most {limit:g} is rounding"
            )
    return found

"""What to measure, and how; part of every result. Free of torch."""

import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from spq_core.documents import Document
from spq_core.evaluation.metrics.registry import figure_names

TASK_NAME = r"^[A-Za-z0-9][A-Za-z0-9_\-]{0,63}$"
TaskName = Annotated[str, Field(pattern=TASK_NAME)]


class EvaluationSettings(Document):
    """Settings shared by all models of one comparison."""

    perplexity: Annotated[tuple[str, ...], Field(min_length=1, max_length=4)] = ("wikitext2",)
    """Datasets by name; all give every metric, the first one `ppl_paper` too."""
    length: Annotated[int, Field(ge=16, le=32768)] | None = None
    """Tokens per window; windows do not overlap, so the stride is the same. By default 1024, or all
    positions of a model that has fewer."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """Number of windows; None for the whole corpus."""
    tasks: Annotated[tuple[TaskName, ...], Field(max_length=16)] = ()
    """Tasks of lm-evaluation-harness by name: truthfulqa_mc1, gsm8k, arc_easy, ...; questions come from the data folder."""
    task_limit: Annotated[int, Field(ge=1)] | None = None
    """Questions of each task; None for all."""
    fewshot: Annotated[int, Field(ge=0, le=100)] | None = None
    """Examples before each question; by default as many as the task says."""
    reuse: bool = True
    """Take figures of the source and of plain INT8 that were measured before on the same text, with the same settings and
    versions; the result names their origin. Speeds are always measured anew."""
    throughput: bool = True
    """Measure prefill and decoding speed of source, plain INT8 and result, taking turns."""
    int8_baseline: bool = True
    """Measure plain INT8 of the same source beside the result."""
    tuned_control: bool = True
    """With a recipe that recovers by training, train the source in the same way and measure it too."""
    trials: Annotated[int, Field(ge=1, le=50)] = 5
    """Repetitions of each speed, whose median counts."""
    prompt_tokens: Annotated[int, Field(ge=1, le=4096)] = 64
    """Tokens of the prompt whose prefill is timed."""
    new_tokens: Annotated[int, Field(ge=1, le=4096)] = 64
    """Tokens that are decoded behind it."""


TASK_FIGURE = re.compile(
    r"(?P<task>[A-Za-z0-9][A-Za-z0-9_\-]{0,63})\.(?P<figure>[A-Za-z0-9_\-]{1,64})"
)
"""A figure of a task: truthfulqa_mc1.acc."""


def task_of(figure: str) -> str | None:
    """The task that a figure is of; None for one of a text, whose name may have a dot too (`kl_p99.9`)."""
    match = None if figure in figure_names() else TASK_FIGURE.fullmatch(figure)
    return None if match is None else match["task"]


def _known(name: str) -> str:
    if name in figure_names() or task_of(name) is not None:
        return name
    close = get_close_matches(name, figure_names(), n=1)
    meant = (
        f"; did you mean {close[0]}?"
        if close
        else f"; there are: {', '.join(sorted(figure_names()))}"
    )
    raise ValueError(f"no figure is called {name!r}{meant}")


Limit = Annotated[float, Field(allow_inf_nan=False)]
Figures = Annotated[dict[Annotated[str, AfterValidator(_known)], Limit], Field(max_length=16)]


class Gates(Document):
    """Limits a result must keep, on every evaluation text, to be published."""

    max_perplexity_ratio: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] | None = None
    """Perplexity of the result over the source's."""
    max_kl: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] | None = None
    """Mean KL(source ‖ result) in nats per token."""
    min_top1: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    """Share of tokens whose most likely successor is the source's."""
    max: Figures = Field(default_factory=dict)
    """Other figures and what they may be at most: `bits_per_byte`, `kl_p99`, `gsm8k.exact_match_strict-match_flips`, ..."""
    min: Figures = Field(default_factory=dict)
    """Other figures and what they must be at least."""
    on_fail: Literal["discard", "keep"] = "discard"
    """What becomes of an artifact that fails: `discard` removes it, `keep` keeps it for inspection, unpublished."""

    @property
    def need_measurement(self) -> bool:
        """Whether there is a limit to compare figures with."""
        return bool(self.at_most or self.at_least)

    @property
    def tasks(self) -> frozenset[str]:
        """Tasks that have limits."""
        tasks = (task_of(name) for name in (*self.at_most, *self.at_least))
        return frozenset(task for task in tasks if task is not None)

    @property
    def at_most(self) -> Mapping[str, float]:
        """Figures, and the limits that they must not be above."""
        named = {"perplexity_ratio": self.max_perplexity_ratio, "kl": self.max_kl}
        return {**{name: limit for name, limit in named.items() if limit is not None}, **self.max}

    @property
    def at_least(self) -> Mapping[str, float]:
        """Figures, and the limits that they must not be below."""
        return {**({} if self.min_top1 is None else {"top1": self.min_top1}), **self.min}

"""What to measure, and how; part of every result. Free of torch."""

from typing import Annotated, Literal

from pydantic import Field

from spq_core.documents import Document


class EvaluationSettings(Document):
    """Settings shared by all models of one comparison."""

    perplexity: Annotated[tuple[str, ...], Field(min_length=1, max_length=4)] = ("wikitext2",)
    """Datasets by name; all give every metric, the first one `ppl_paper` too."""
    length: Annotated[int, Field(ge=16, le=32768)] | None = None
    """Tokens per window; windows do not overlap, so the stride is the same. By default 1024, or all
    positions of a model that has fewer."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """Number of windows; None for the whole corpus."""
    throughput: bool = True
    int8_baseline: bool = True
    """Measure plain INT8 of the same source beside the result."""
    tuned_control: bool = True
    """With a recipe that recovers by training, train the source in the same way and measure it too."""
    trials: Annotated[int, Field(ge=1, le=50)] = 5
    prompt_tokens: Annotated[int, Field(ge=1, le=4096)] = 64
    new_tokens: Annotated[int, Field(ge=1, le=4096)] = 64


class Gates(Document):
    """Limits a result must keep, on every evaluation text, to be published."""

    max_perplexity_ratio: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] | None = None
    max_kl: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] | None = None
    """Mean KL(source ‖ result) in nats per token."""
    min_top1: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    """Share of tokens whose most likely successor is the source's."""
    on_fail: Literal["discard", "keep"] = "discard"

    @property
    def need_measurement(self) -> bool:
        """Whether there is a limit to compare figures with."""
        return (self.max_perplexity_ratio, self.max_kl, self.min_top1) != (None, None, None)

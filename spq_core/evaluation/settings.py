"""What to measure, and how; part of every result. Free of torch."""

from typing import Annotated

from pydantic import Field

from spq_core.recipe.settings import Document


class EvaluationSettings(Document):
    """Settings shared by all models of one comparison."""

    perplexity: Annotated[tuple[str, ...], Field(min_length=1, max_length=4)] = ("wikitext2",)
    """Datasets by name; the first one also gives KL, top-1 agreement and `ppl_paper`."""
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

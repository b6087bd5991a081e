"""How long stages of a job take beside one another, before anything is known of its model. Free of torch.

The unit is a token passed through the model once, forward: most of what a job does grows with the model as that does (see
`costs`, from whose constants the numbers below follow for two cores).
"""

from spq_core.data.calibration import PASSED_SECONDS, sensitivity_tokens
from spq_core.estimate.costs import (
    CORPUS_TOKENS,
    DECODED_SECONDS,
    EVALUATION_LENGTH,
    SCORED_SECONDS,
)
from spq_core.evaluation.settings import EvaluationSettings
from spq_core.recipe.document import Recipe

FIXED = {
    "download": 3000.0,
    "preflight": 1500.0,
    "load_gate": 4000.0,
    "int8": 2500.0,
    "publish": 3000.0,
}
"""Starting a process, and copying a model once or twice."""
COPIED = 3000.0
QUESTIONS, QUESTION_TOKENS = 500, 400
"""Of a task, where no limit is set."""
AUTO_TOKENS = 16_384
"""Of calibration, where the model's width decides; a guess."""


def stage_cost(stage: str, recipe: Recipe, evaluation: EvaluationSettings, models: int) -> float:
    """Tokens' worth of a stage, by its id; `models`: how many are measured."""
    tokens = _calibration_tokens(recipe)
    if stage == "sensitivity":
        return 3.0 * sensitivity_tokens(tokens)
    if stage == "compress":
        looks = sum(one.passes_samples for one in recipe.stages)
        return COPIED + looks * PASSED_SECONDS / SCORED_SECONDS * tokens
    if stage in {"recover", "tuned_source"}:
        return COPIED + 4.0 * sum(one.trained_tokens for one in recipe.trained)
    return FIXED[stage] if stage in FIXED else models * _measured(stage, evaluation)


def _measured(stage: str, evaluation: EvaluationSettings) -> float:
    """Of one model."""
    if stage == "speed":
        decoded = (evaluation.trials + 1) * evaluation.new_tokens if evaluation.throughput else 0
        return COPIED / 3 + decoded * DECODED_SECONDS / SCORED_SECONDS
    if stage == "tasks":
        asked = len(evaluation.tasks) * (evaluation.task_limit or QUESTIONS)
        return float(asked * QUESTION_TOKENS)
    return scored_tokens(evaluation)


def scored_tokens(evaluation: EvaluationSettings) -> float:
    """Of all texts, for one model."""
    length = evaluation.length or EVALUATION_LENGTH
    text = evaluation.limit * length if evaluation.limit else CORPUS_TOKENS
    return float(text * len(evaluation.perplexity))


def _calibration_tokens(recipe: Recipe) -> int:
    asked = recipe.calibration
    if asked.samples == "auto":
        return max(asked.least_tokens, AUTO_TOKENS)
    return asked.samples * asked.length

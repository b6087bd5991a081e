"""Figures of a task from single answers: a mean, how sure it is, and how it compares with the source. Free of torch."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import NamedTuple

Answers = Mapping[str, Sequence[float]]
"""By figure, a value a question (1 right, 0 wrong, or a share), in the questions' order."""
TaskFigures = dict[str, float | None]


class TaskAnswers(NamedTuple):
    """What a model answered to a task."""

    answers: Answers
    chance: float
    """What guessing gives."""


RIGHT = 0.5
"""What an answer must be above to count as right."""


def task_figures(answers: Answers, reference: Answers | None, chance: float | None) -> TaskFigures:
    """A task's figures.

    Each has its standard error over questions. Beside a reference there are the mean difference to it, its standard error
    (paired, by question), and the share of questions whose answer flipped in either direction.

    Args:
        chance: what guessing gives, if that is known.
    """
    figures: TaskFigures = {}
    for name, values in answers.items():
        figures |= {name: _mean(values), f"{name}_se": _error(values)}
        if reference is not None:
            others = reference[name]
            changes = [one - other for one, other in zip(values, others, strict=True)]
            flips = [
                not math.isfinite(one) or (one > RIGHT) != (other > RIGHT)
                for one, other in zip(values, others, strict=True)
            ]
            figures |= {
                f"{name}_change": _mean(changes),
                f"{name}_change_se": _error(changes),
                f"{name}_flips": fmean(flips),
            }
    return figures | {"chance": chance, "questions": float(len(next(iter(answers.values()))))}


def compared_answers(
    answers: Mapping[str, Mapping[str, TaskAnswers]], reference: str | None
) -> dict[str, dict[str, TaskFigures]]:
    """Figures by model and task, of answers by model and task.

    Args:
        reference: the model that others are compared with, or None.
    """
    theirs = answers.get(reference, {}) if reference is not None else {}
    return {
        name: {
            task: task_figures(
                given.answers,
                theirs[task].answers if task in theirs and name != reference else None,
                given.chance,
            )
            for task, given in own.items()
        }
        for name, own in answers.items()
    }


def retention(
    scores: Mapping[str, float], source: Mapping[str, float], chances: Mapping[str, float]
) -> float | None:
    """Mean over tasks of (score − chance) / (source − chance); None where the source knows no task better than chance.

    A figure of our own: what is left, on average, of what the source could do. Tasks at which the source only guesses say
    nothing and are left out. (Works on compression report a score called SrCr, whose formula was not published where we could
    read it; this is not it.)
    """
    kept = [
        (scores[task] - chances[task]) / (source[task] - chances[task])
        for task in scores
        if source[task] > chances[task]
    ]
    return fmean(kept) if kept else None


def _mean(values: Sequence[float]) -> float | None:
    """None where an answer is no number: then the model's predictions are none."""
    return fmean(values) if all(map(math.isfinite, values)) else None


def _error(values: Sequence[float]) -> float | None:
    if len(values) < 2 or not all(map(math.isfinite, values)):  # noqa: PLR2004
        return None
    return stdev(values) / math.sqrt(len(values))

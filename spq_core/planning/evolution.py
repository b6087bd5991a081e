"""A level for each part of a model, found by trying whole models (EvoPress, arXiv:2410.14649)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random

from spq_core.planning.levels import Options

Levels = dict[str, int]
"""By part: see `Options`."""
Fitness = Callable[[Sequence[Levels], int], list[float]]
"""KL of each candidate from the source, on so many of the rows there are to measure on."""


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is tried. The paper has 150 generations of 128 on a GPU."""

    generations: int
    offspring: int = 8
    """In each generation, the parent besides."""
    survivors: int = 3
    """Of the first, cheap look, which are measured on all rows."""
    few_rows: int = 1
    """Of the first look."""
    all_rows: int = 4
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Evolved:
    """What came out."""

    levels: Levels
    divergences: tuple[float, ...]
    """Of the best so far, on all rows: first of what it began with, then behind each generation."""


def evolve(
    start: Levels,
    options: Mapping[str, Options],
    wanted_bytes: float,
    fitness: Fitness,
    effort: Effort,
    after_each: Callable[[float], None] = lambda _best: None,
) -> Evolved:
    """Change a few levels at a time, and keep what is closest to the source; never above `wanted_bytes`.

    A swap takes one part a level up and others down until the bytes fit again. Every generation, one to three swaps make each
    of the offspring; those that are best on few rows are measured on all, beside their parent (elitism, as published).

    Args:
        start: a choice that fits.
    """
    random = Random(effort.seed)  # noqa: S311 - a search, no secret
    best = dict(start)
    (least,) = fitness([best], effort.all_rows)
    history = [least]
    for _ in range(effort.generations):
        tried = [
            _mutated(best, options, wanted_bytes, random, swaps=min(random.randint(1, 3), random.randint(1, 3)))
            for _ in range(effort.offspring)
        ]  # fmt: skip
        distinct = [
            one for number, one in enumerate(tried) if one != best and one not in tried[:number]
        ]
        if distinct:
            first = fitness(distinct, effort.few_rows)
            ranked = sorted(range(len(distinct)), key=first.__getitem__)[: effort.survivors]
            finalists = [distinct[number] for number in ranked]
            divergences = fitness(finalists, effort.all_rows)
            winner = min(range(len(finalists)), key=divergences.__getitem__)
            if divergences[winner] < least:
                best, least = finalists[winner], divergences[winner]
        history.append(least)
        after_each(least)
    return Evolved(best, tuple(history))


def total_bytes(levels: Mapping[str, int], options: Mapping[str, Options]) -> float:
    """Of all parts."""
    return sum(
        options[name].bytes[options[name].levels.index(level)] for name, level in levels.items()
    )


def _mutated(
    parent: Levels,
    options: Mapping[str, Options],
    wanted_bytes: float,
    random: Random,
    *,
    swaps: int,
) -> Levels:
    child = dict(parent)
    for _ in range(swaps):
        raised = [name for name in child if _moved(child[name], options[name], 1) is not None]
        if not raised:
            break
        up = random.choice(raised)
        child[up] = _moved(child[up], options[up], 1) or child[up]
        while total_bytes(child, options) > wanted_bytes:
            lowered = [
                name
                for name in child
                if name != up and _moved(child[name], options[name], -1) is not None
            ]
            if not lowered:
                return dict(parent)
            down = random.choice(lowered)
            child[down] = _moved(child[down], options[down], -1) or child[down]
    return child


def _moved(level: int, options: Options, by: int) -> int | None:
    """The next level up or down; None where there is none."""
    ordered = sorted(options.levels)
    place = ordered.index(level) + by
    return ordered[place] if 0 <= place < len(ordered) else None

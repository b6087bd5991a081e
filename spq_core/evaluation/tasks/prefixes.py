"""Log-likelihoods of continuations, with what their contexts have in common computed once.

Choices of a question have one context, and questions often begin alike (worked examples before each of them). Contexts are
taken in the order of their tokens, so that neighbours share the longest beginnings, whose keys and values stay. What was
asked before is not computed again: the choices of truthfulqa_mc1 are nearly all among those of truthfulqa_mc2.
"""

import copy
from array import array
from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from itertools import groupby, takewhile
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer

TOKENS_AT_ONCE = 512
"""Of continuations beside one another."""
AT_ONCE = 16
Request = tuple[Any, list[int], list[int]]
"""As the harness makes them: what it is of, tokens of the context (at least one), tokens of the continuation (at least one)."""
Answer = tuple[float, bool]
"""The log-likelihood, and whether the continuation is what the model would have said."""
Answered = dict[bytes, Answer]
"""Answers of one model by the request's digest."""


class SharedPrefixes:
    """Answers requests for one model."""

    def __init__(
        self,
        model: PreTrainedModel,
        length: int,
        otherwise: Callable[[list[Request]], list[Answer]],
        answered: Answered,
    ) -> None:
        """Begin with no keys and values.

        Args:
            length: tokens that the model may see.
            otherwise: answers requests that are longer, and those of models whose keys and values cannot be cut (windows that
                slide, recurrent states).
            answered: what is known of this model at this length; grows.
        """
        self._model, self._length, self._otherwise = model, length, otherwise
        self._answered = answered
        self._tokens: list[int] = []
        self._cache = DynamicCache(config=model.config)

    def answer(self, requests: Sequence[Request], **_unused: object) -> list[Answer]:
        """One answer a request, in their order."""
        keys = [_digest(one) for one in requests]
        asked = {
            key: one for key, one in zip(keys, requests, strict=True) if key not in self._answered
        }
        self._answered.update(zip(asked, self._computed(list(asked.values())), strict=True))
        return [self._answered[key] for key in keys]

    @torch.no_grad()
    def _computed(self, requests: list[Request]) -> list[Answer]:
        found: dict[int, Answer] = {}
        whole = [at for at, one in enumerate(requests) if self._fits(one)]
        for _, group in groupby(
            sorted(whole, key=lambda at: requests[at][1]), key=lambda at: requests[at][1]
        ):
            places = list(group)
            choices = [requests[at][2] for at in places]
            found |= zip(places, self._continued(requests[places[0]][1], choices), strict=True)
        rest = [at for at in range(len(requests)) if at not in found]
        if rest:
            found |= zip(rest, self._otherwise([requests[at] for at in rest]), strict=True)
        return [found[at] for at in range(len(requests))]

    def _fits(self, request: Request) -> bool:
        can_be_cut = all(type(layer) is DynamicLayer for layer in self._cache.layers)
        return can_be_cut and len(request[1]) + len(request[2]) <= self._length + 1

    def _continued(self, context: list[int], choices: list[list[int]]) -> Iterator[Answer]:
        first = self._read(context)
        for some in _beside_one_another(choices):
            following = self._following(some)
            for place, choice in enumerate(some):
                own = first if following is None else torch.cat([first, following[place]])
                yield _answer(own[: len(choice)], choice)

    def _read(self, context: list[int]) -> Tensor:
        """What the model predicts behind a context, of which only what is new is passed through it."""
        both = zip(self._tokens, context[:-1], strict=False)
        known = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], both))
        if known < len(self._tokens):
            self._cache.crop(known - len(self._tokens))
        logits = self._run([context[known:]], self._cache, keep=1)
        self._tokens = context
        return logits[0, -1:].float()

    def _following(self, choices: list[list[int]]) -> Tensor | None:
        """What it predicts behind each token of each choice; None where each is one token."""
        longest = max(map(len, choices)) - 1
        if longest == 0:
            return None
        cache = copy.deepcopy(self._cache)
        if len(choices) > 1:
            cache.batch_repeat_interleave(len(choices))
        # Behind a choice's end nothing is looked at, and attention looks backwards only.
        padded = [[*choice[:-1], *[0] * (longest - len(choice) + 1)] for choice in choices]
        return self._run(padded, cache, keep=0).float()

    def _run(self, rows: list[list[int]], cache: DynamicCache, *, keep: int) -> Tensor:
        ids = torch.tensor(rows, device=self._model.device)
        logits: Tensor = self._model(
            input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=keep
        ).logits
        return logits


def _digest(request: Request) -> bytes:
    _, context, choice = request
    return sha256(array("q", [len(context), *context, *choice]).tobytes()).digest()


def _beside_one_another(choices: list[list[int]]) -> Iterator[list[list[int]]]:
    """Choices that are passed through the model together."""
    some: list[list[int]] = []
    for choice in choices:
        longest = max(map(len, [*some, choice]))
        if some and (len(some) == AT_ONCE or longest * (len(some) + 1) > TOKENS_AT_ONCE):
            yield some
            some = []
        some.append(choice)
    yield some


def _answer(logits: Tensor, choice: list[int]) -> Answer:
    tokens = torch.tensor(choice, device=logits.device)
    said = logits.log_softmax(-1).gather(1, tokens[:, None]).sum()
    return float(said), bool((logits.argmax(-1) == tokens).all())

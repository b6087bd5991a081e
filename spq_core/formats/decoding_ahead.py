"""Matrices that stay coded in memory, decoded by threads ahead of their use."""

from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from threading import Lock

import torch
from jaxtyping import Int8
from torch import Tensor

from spq_core.formats.layer import CompressedLinear

LEAST_AHEAD = 2
"""Matrices that are decoded while another computes, on a machine with few cores."""


class StaysCoded(CompressedLinear):
    """A linear layer that holds its stored bytes and asks the model's decoder for its codes."""

    decoder: "AheadDecoder"

    @property
    @abstractmethod
    def coded_bytes(self) -> int:
        """What it holds."""

    @abstractmethod
    def decoded(self) -> Int8[Tensor, "out padded"]:
        """Codes as the kernels want them; lets go of the interpreter's lock while it decodes."""

    @abstractmethod
    def expanded(self) -> CompressedLinear:
        """The layer with its codes decoded, for good."""


class AheadDecoder:
    """Decodes the matrices of one model, in the order in which they were used last.

    Nobody tells it the order: what followed a matrix once is decoded when that matrix is used again.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.ahead = max(LEAST_AHEAD, threads)
        """Matrices that may be decoded besides the one that is used."""
        self._rehearsed: dict[tuple[int, int], Tensor] | None = None
        self.forget()

    def forget(self) -> None:
        """Begin anew: no order, no threads."""
        self._pool: ThreadPoolExecutor | None = None
        self._lock = Lock()
        self._last: StaysCoded | None = None
        self._next: dict[int, StaysCoded] = {}
        self._begun: OrderedDict[int, Future[Tensor]] = OrderedDict()

    def __reduce__(self) -> tuple[type["AheadDecoder"], tuple[int]]:
        """Of a copied or stored model: it learns its own order."""
        return AheadDecoder, (self.threads,)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def codes(self, layer: "StaysCoded") -> Int8[Tensor, "out padded"]:
        """The layer's codes: decoded by now, being decoded, or decoded at once."""
        if self._rehearsed is not None:
            shape = layer.out_features, layer.in_features
            if shape not in self._rehearsed:
                self._rehearsed[shape] = layer.decoded()
            return self._rehearsed[shape]
        with self._lock:
            if self._last is not None:
                self._next[id(self._last)] = layer
            self._last = layer
            begun = self._begun.pop(id(layer), None)
            self._begin_next(layer)
        return begun.result() if begun is not None else layer.decoded()

    @contextmanager
    def rehearsal(self) -> Iterator[None]:
        """Within, layers of one shape all get the codes of one of them, decoded once: what computing alone takes."""
        self._rehearsed = {}
        try:
            yield
        finally:
            self._rehearsed = None

    def decode_all(self, layers: list[StaysCoded]) -> None:
        """Decode matrices and forget them: what decoding alone takes."""
        with ThreadPoolExecutor(self.threads) as pool:
            for _ in pool.map(_decode_and_forget, layers):
                pass

    def _begin_next(self, layer: "StaysCoded") -> None:
        wanted, at = [], layer
        for _ in range(self.ahead):
            following = self._next.get(id(at))
            if following is None or following is layer:
                break
            wanted.append(following)
            at = following
        for stale in [key for key in self._begun if key not in {id(one) for one in wanted}]:
            self._begun.pop(stale).cancel()  # the order was another this time
        if wanted and self._pool is None:
            self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="decode")
        for one in wanted:
            if id(one) not in self._begun and self._pool is not None:
                self._begun[id(one)] = self._pool.submit(one.decoded)


def _decode_and_forget(layer: StaysCoded) -> None:
    layer.decoded()

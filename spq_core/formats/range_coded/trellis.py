"""Sequences of codes that follow a trellis: each code may only take every other value, and which ones depends on those before it.

A scalar quantizer with entropy coding stays 0.255 bit above the rate-distortion bound. Trellis-coded quantization (Marcellin &
Fischer 1990, doi:10.1109/26.46532) takes most of that back: two quantizers, each with spacings of two steps, alternate as a state
machine says, and the best of all allowed sequences is found by the Viterbi algorithm. The first quantizer has the even multiples
of the step, the second the odd ones and zero (so that runs of zeros stay cheap). Both number their values by an index k of one
sign with the value,
    first: n = 2k,    second: n = 2k - sign(k),
and the lowest bit of k moves the machine on.

The machine is a systematic convolutional code of rate 1/2 with the parity-check polynomials of Ungerboeck (1982,
doi:10.1109/TIT.1982.1056454, table I, and 1987 part II): the lowest bit of its state is the quantizer that comes next.
"""

import math
from functools import cache

import numpy as np

PARITY_CHECKS = {8: (0o13, 0o04), 16: (0o23, 0o04), 32: (0o45, 0o10), 64: (0o103, 0o024)}
"""Polynomials of what is known of a code and of what it chooses, by number of states."""
SEGMENT = 1024
"""Rows after which a column's machine begins anew, so that parts of a column can be worked on side by side."""
SCALAR = 1
"""States of a machine without a choice: every multiple of the step."""

ERRORS = {8: 0.244, 16: 0.2405, 32: 0.2365, 64: 0.2336}
"""Mean squared error in squared steps by number of states, of normal values much wider than a step (simulated)."""
SCALAR_ERROR = 1 / 12
MOST_OCTAVES_COARSER = 0.1
"""How much larger steps may come out along a trellis, for codes to fit into 8 bits, than the error asks for: beyond, free codes are better."""

Table = np.ndarray[tuple[int, int], np.dtype[np.uint8]]


def bit_price(states: int) -> float:
    """What a bit is worth in squared steps: with one more a quarter of the error is left, where steps are fine."""
    return 2 * math.log(2) * ERRORS[states]


def finer(distortion: float, states: int) -> float:
    """The distortion (12 times the error that free codes make with its steps) whose steps make that error along a trellis."""
    return distortion * SCALAR_ERROR / ERRORS[states]


@cache
def transitions(states: int) -> Table:
    """The next state by state and lowest bit of the index; where there is one state, it stays."""
    if states == SCALAR:
        return np.zeros((1, 2), dtype=np.uint8)
    known, chosen = PARITY_CHECKS[states]
    memory = states.bit_length() - 1
    table = np.zeros((states, 2), dtype=np.uint8)
    for state in range(states):
        for bit in (0, 1):
            # The canonical form with one register a coefficient: each takes the next one's content.
            moved = (known >> 1) * (state & 1) ^ (chosen >> 1) * bit
            table[state, bit] = (moved ^ (state >> 1)) & ((1 << memory) - 1)
    return table


@cache
def ways_in(states: int) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    """The two ways into each state: (4, states).

    Rows are the state before and the set of values that leads on, for the first way and for the second. Sets: 2 · quantizer +
    lowest bit of the index.
    """
    found: list[list[int]] = [[] for _ in range(states)]
    for state, nexts in enumerate(transitions(states)):
        for bit, following in enumerate(nexts):
            found[following] += [state, 2 * (state & 1) + bit]
    return np.ascontiguousarray(np.array(found, dtype=np.int64).T)

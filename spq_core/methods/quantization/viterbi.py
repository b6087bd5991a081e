"""The cheapest sequence of codes that a trellis allows, by error and length together (Viterbi 1967, doi:10.1109/TIT.1967.1054010).

Each code costs its squared error plus what a bit is worth times the bits it will take. At each code the machine has four sets of values
to choose from (two quantizers, and the lowest bit of the index), of which only the nearest value counts; the two ways into each
state are compared, and the better one stays.
"""

from typing import Any

import numpy as np
from numba import njit

from spq_core.formats.range_coded.tables import EVEN, KINDS, ODD, ODD_ASIDE, SPREADS

SETS = 4
LARGEST = 127


@njit(nogil=True, fastmath={"nnan", "ninf", "nsz"})
def _nearest(value: Any, which: int) -> Any:
    """The value nearest to one of a set: 0, 1 of the first quantizer with an even and an odd index, 2, 3 of the second."""
    if which < 2:
        found = 4 * np.int64(np.rint((value - 2 * which) / 4)) + 2 * which
        while found > LARGEST:
            found -= 4
        while found < -LARGEST:
            found += 4
        return found
    size: Any = abs(value)
    first = 3 if which == 2 else 1
    if which == 2 and size < 1.5:
        return 0
    found = max(4 * np.int64(np.rint((size - first) / 4)) + first, np.int64(first))
    while found > LARGEST:
        found -= 4
    return found if value >= 0 else -found


@njit(nogil=True, fastmath={"nnan", "ninf", "nsz"})
def _index(found: Any, which: int) -> Any:
    if which < 2:
        return found >> 1
    if found > 0:
        return (found + 1) >> 1
    return -((1 - found) >> 1) if found < 0 else 0


@njit(nogil=True, fastmath={"nnan", "ninf", "nsz"})
def best_codes(
    wanted: Any,
    rows: Any,
    column: int,
    centre: int,
    ways: Any,
    reach: Any,
    price: Any,
    codes: Any,
) -> None:
    """Choose the codes of one column's segment.

    Args:
        wanted: in steps, where the sign of the column's centre is positive. rows: spread of each. column: spread of the column.
        centre: as an index, not negative. ways: (4, states), see `ways_in`.
        reach: see `tables.Tables`. price: by table and symbol, of its length; in squared steps.
        codes: int8, gets the result.
    """
    count, states = len(wanted), ways.shape[1]
    choices = np.empty((count, SETS), np.int8)
    came_by = np.empty((count, states), np.bool_)
    costs = np.full(states, np.float32(1e30))
    costs[0] = 0.0
    following = np.empty(states, np.float32)
    costs_of = np.empty(SETS, np.float32)
    second = ODD if centre == 0 else ODD_ASIDE
    for place in range(count):
        spread: Any = min(max(np.int64(rows[place]) + column, 0), SPREADS - 1)
        for which in range(SETS):
            found = _nearest(wanted[place], which)
            table = spread * KINDS + (EVEN if which < 2 else second)
            symbol = _index(found, which) - centre + reach[table]
            if symbol < 0 or symbol > 2 * reach[table]:
                symbol = 2 * reach[table] + 1
            off = wanted[place] - found
            costs_of[which] = np.float32(off * off) + price[table, symbol]
            choices[place, which] = found
        least = np.float32(1e30)
        for state in range(states):
            one = costs[ways[0, state]] + costs_of[ways[1, state]]
            other = costs[ways[2, state]] + costs_of[ways[3, state]]
            better = other < one
            came_by[place, state] = better
            following[state] = other if better else one
            least = min(least, following[state])
        for state in range(states):
            costs[state] = following[state] - least
    last: Any = np.int64(np.argmin(costs))
    for place in range(count - 1, -1, -1):
        way = 2 if came_by[place, last] else 0
        codes[place] = choices[place, ways[way + 1, last]]
        last = ways[way, last]

"""Cases of one test that run always, and those that `make test-extended` adds."""

from collections.abc import Sequence
from typing import Any

import pytest


def every(step: int, values: Sequence[Any]) -> list[Any]:
    """All values; of each `step` only the first runs always."""
    return [
        value
        if number % step == 0
        else pytest.param(
            *(value if isinstance(value, tuple) else (value,)), marks=pytest.mark.extended
        )
        for number, value in enumerate(values)
    ]

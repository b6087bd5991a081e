"""How fast a run may report: each report is a write to the database, and the run waits for it."""

import time
from dataclasses import dataclass, field

BURST = 200
A_SECOND = 5.0


@dataclass(slots=True)
class Pace:
    """Some at once, then so many a second."""

    _left: float = BURST
    _since: float = field(default_factory=time.monotonic)

    def wait(self) -> None:
        """Take one, when there is one."""
        moment = time.monotonic()
        self._left = min(BURST, self._left + (moment - self._since) * A_SECOND) - 1
        self._since = moment
        if self._left < 0:
            time.sleep(-self._left / A_SECOND)

"""What an attempt's children write, on its way to the job's log."""

from collections.abc import Callable
from dataclasses import dataclass

MAX_LINE = 2000
MAX_CHARACTERS = 8_000_000
"""Of one attempt; whoever reads a log does not read more, and a run could write without end."""
LINE_COST = 100
"""Characters that a line counts for at least: each is a row."""
CUT = "[the log is too long; what comes after this is not kept]"


@dataclass(slots=True)
class JobLog:
    """Lines without the token and without what a database cannot hold, and not without end."""

    keep: Callable[[list[str]], object]
    token: str | None = None
    _characters: int = 0

    def note(self, text: str) -> None:
        """Keep a line, if it says anything."""
        if not text.strip() or self._characters > MAX_CHARACTERS:
            return
        line = self.scrubbed(text)[:MAX_LINE]
        self._characters += max(LINE_COST, len(line))
        self.keep([line if self._characters <= MAX_CHARACTERS else CUT])

    def scrubbed(self, text: str) -> str:
        """The text, fit to be shown and stored."""
        clean = text.replace("\0", "\ufffd").encode("utf-8", "replace").decode("utf-8")
        return clean.replace(self.token, "[token]") if self.token else clean

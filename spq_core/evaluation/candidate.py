"""A model that is to be measured, and what its figures are known by."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path


@dataclass(frozen=True)
class Candidate:
    """A model folder or a GGUF file, which may be made only when it is needed."""

    make: Callable[[], Path]
    identity: str | None = None
    """Digest of all its figures depend on; None where they are always measured anew."""
    is_made_late: bool = False
    """Whether making it is work, which is not done where its figures are known."""

    @cached_property
    def folder(self) -> Path:
        """Where it is."""
        return self.make()


def at(path: Path, identity: str | None = None) -> Candidate:
    """A model that is there."""
    return Candidate(lambda: path, identity)

"""Artifacts on disk: gone on with where they broke off, and compared with their digests."""

import hashlib
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from spq_client.errors import DamagedDownloadError

PART = ".part"


class Target:
    """One file of a download."""

    def __init__(self, folder: Path, path: str, sha256: str, size: int) -> None:
        """Find out how much of it is there.

        Raises:
            DamagedDownloadError: its path leads out of the folder.
        """
        parts = PurePosixPath(path).parts
        if not parts or path.startswith("/") or ".." in parts:
            raise DamagedDownloadError(f"{path!r} is not a file of an artifact")
        self.file = folder.joinpath(*parts)
        self.part = self.file.with_name(f"{self.file.name}{PART}")
        self.path, self.sha256, self.size = path, sha256, size

    @property
    def is_whole(self) -> bool:
        """Whether it is there already, as it should be."""
        return (
            self.file.is_file()
            and self.file.stat().st_size == self.size
            and self._digest(self.file) == self.sha256
        )

    @property
    def have(self) -> int:
        """Bytes that an earlier download left."""
        size = self.part.stat().st_size if self.part.is_file() else 0
        return size if size < self.size else 0

    def write(self, chunks: Iterable[bytes], start: int) -> None:
        """Add what comes, behind what is there."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.part.open("ab" if start else "wb") as file:
            for chunk in chunks:
                file.write(chunk)

    def finish(self) -> Path:
        """Give it its name, once it is what the service recorded.

        Raises:
            DamagedDownloadError: it is not.
        """
        if self.size == 0 and not self.part.exists():
            self.write([], 0)
        if self._digest(self.part) != self.sha256:
            self.part.unlink()
            raise DamagedDownloadError(f"{self.path} is not what the service recorded; try again")
        return self.part.replace(self.file)

    @staticmethod
    def _digest(file: Path) -> str:
        with file.open("rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest()

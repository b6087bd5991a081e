"""A whole artifact as one tar file, made while it is sent: it takes neither memory nor disk."""

import hashlib
import tarfile
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime

from app.artifacts.store import StoredFile

BLOCK = tarfile.BLOCKSIZE
END = bytes(2 * BLOCK)


class Archive:
    """Of files that are all regular and lie in one folder."""

    def __init__(self, folder: str, moment: datetime, files: Sequence[StoredFile]) -> None:
        """Plan it.

        Args:
            folder: that the files are in, inside of the archive.
            moment: when they were made, as the archive tells it.
        """
        self._heads = [(_head(folder, moment, file), file) for file in files]
        self.size = sum(len(head) + _padded(file.bytes) for head, file in self._heads) + len(END)
        """Bytes of the archive."""
        told = "".join(f"{file.path} {file.sha256}\n" for file in files)
        self.digest = hashlib.sha256(told.encode()).hexdigest()
        """The same for the same files."""

    def content(self, read: Callable[[StoredFile], Iterator[bytes]]) -> Iterator[bytes]:
        """Its bytes, piece by piece.

        Args:
            read: a file's bytes.
        """
        for head, file in self._heads:
            yield head
            yield from read(file)
            yield bytes(_padded(file.bytes) - file.bytes)
        yield END


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _head(folder: str, moment: datetime, file: StoredFile) -> bytes:
    info = tarfile.TarInfo(f"{folder}/{file.path}")
    info.size, info.mtime, info.mode = file.bytes, int(moment.timestamp()), 0o644
    return info.tobuf(tarfile.PAX_FORMAT)

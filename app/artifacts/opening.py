"""Which store a setting names."""

from pathlib import Path

from app.artifacts.local import LocalStore
from app.artifacts.store import ArtifactStore


def open_store(address: str) -> ArtifactStore:
    """The store at `s3://bucket/prefix`, or in a folder.

    Raises:
        ValueError: it is no such address, or what an object store needs is not installed.
    """
    if "://" not in address:
        return LocalStore(Path(address))
    try:
        from app.artifacts.object_store import connect  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise ValueError(
            f"{address} needs obstore: pip install -e '.[s3]' in the checkout ({error})"
        ) from None
    return connect(address)

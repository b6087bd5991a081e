"""Links in a model folder: where they may lead. Free of torch."""

import os
from collections.abc import Sequence
from pathlib import Path

from spq_core.errors import UnsafeModelError
from spq_core.models.model_folder import SIDE_FOLDERS, is_side_file, names_in
from spq_core.models.reading import GGUF
from spq_core.models.weight_files import INDEX_FILE


def refuse_dangling_links(folder: Path) -> None:
    """A link to nothing would be a file that silently is not there.

    Raises:
        UnsafeModelError: naming it.
    """
    if not folder.is_dir():
        return
    for name in names_in(folder):
        path = folder / name
        if _may_be_used(name) and path.is_symlink() and not path.exists():
            raise UnsafeModelError(
                "unsafe_link",
                f"{folder.name}: {name} is a link to a file that does not exist; restore the file, or remove the link",
            )


def _may_be_used(name: str) -> bool:
    known = name in {"config.json", INDEX_FILE} or is_side_file(name)
    return known or name.endswith((".safetensors", GGUF)) or name in SIDE_FOLDERS


def refuse_links_outside(folder: Path, allowed: Sequence[Path]) -> None:
    """Refuse a folder with files that are really elsewhere.

    Who may write to one model folder must not choose which other files of the machine a run reads, and
    publishes. A snapshot in a Hub cache links to the `blobs` beside it, which is fine.

    Args:
        allowed: folders that files may really lie in, too.

    Raises:
        UnsafeModelError: naming the file.
    """
    home = folder.resolve()
    homes = [home, *(path.resolve() for path in allowed)]
    if home.parent.name == "snapshots":
        homes.append(home.parent.parent / "blobs")
    for name in names_in(folder):  # before any of them is read
        if not _may_be_used(name):
            continue
        real = Path(os.path.realpath(folder / name))
        if not any(real.is_relative_to(one) for one in homes):
            raise UnsafeModelError(
                "unsafe_link",
                f"{folder.name}: {name} is a link to a file outside the model folder; put the file itself "
                "there, or have the operator add the folder it lies in to SPQ_MODEL_DIRS",
            )

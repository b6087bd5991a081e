"""Which files of a repository are fetched: the index decides on weights, as it does in a folder."""

from collections.abc import Callable
from dataclasses import dataclass

from huggingface_hub.hf_api import RepoSibling

from spq_core.errors import ArtifactError, UnsafeModelError
from spq_core.models.model_folder import is_side_file, is_terms_file
from spq_core.models.other_repositories import ADAPTER_FILE, base_named_in, what_instead
from spq_core.models.reading import AS_IT_IS, GGUF, Reading
from spq_core.models.weight_files import INDEX_FILE, SINGLE_FILE, files_of_index

CODE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".h5", ".msgpack", ".ckpt")
MAX_SIDE_BYTES = 64 << 20
MAX_INDEX_BYTES = 16 << 20
SHOWN = 5


@dataclass(frozen=True, slots=True)
class ChosenFiles:
    """Files of one commit, in the order they are fetched."""

    small: tuple[RepoSibling, ...]
    """config.json first, then side files and the index."""
    weights: tuple[RepoSibling, ...]

    @property
    def all(self) -> tuple[RepoSibling, ...]:
        """Weights last."""
        return (*self.small, *self.weights)


def choose_files(
    repo_id: str,
    siblings: list[RepoSibling],
    read: Callable[[str, int], bytes],
    reading: Reading = AS_IT_IS,
) -> ChosenFiles:
    """Choose what to fetch of a repository.

    Args:
        read: gives the first bytes of a file, at most so many.
        reading: what of it is the model.

    Raises:
        UnsafeModelError: there are no safetensors weights, or a file is larger than it should be.
    """
    where = f"{reading.subfolder}/" if reading.subfolder else ""
    by_name = _within(repo_id, siblings, where)
    if reading.file is not None:
        return _one_file(repo_id, by_name, reading.file)
    if "config.json" not in by_name:
        adapter = read(where + ADAPTER_FILE, MAX_INDEX_BYTES) if ADAPTER_FILE in by_name else b""
        reason = what_instead(repo_id, by_name, base_named_in(adapter))
        raise UnsafeModelError("unsupported_architecture", reason)
    side = sorted(name for name in by_name if is_side_file(name) and name != "config.json")
    weights: list[str] = []
    if SINGLE_FILE in by_name:
        weights = [SINGLE_FILE]
    elif INDEX_FILE in by_name:
        weights = _indexed(repo_id, by_name, read(where + INDEX_FILE, MAX_INDEX_BYTES + 1))
        side.append(INDEX_FILE)
    if not weights:
        raise UnsafeModelError("unsafe_format", _without_weights(repo_id, list(by_name)))
    small = ["config.json", *side]
    for name in small:
        if (by_name[name].size or 0) > MAX_SIDE_BYTES:
            raise UnsafeModelError(
                "unsafe_config", f"{repo_id}: {name} is larger than {MAX_SIDE_BYTES} bytes"
            )
    return ChosenFiles(
        tuple(by_name[name] for name in small), tuple(by_name[name] for name in weights)
    )


def _within(repo_id: str, siblings: list[RepoSibling], where: str) -> dict[str, RepoSibling]:
    """Files by their names in a folder of the repository."""
    found = {
        sibling.rfilename.removeprefix(where): sibling
        for sibling in siblings
        if sibling.rfilename.startswith(where)
    }
    if where and not found:
        raise UnsafeModelError("unsupported_architecture", f"{repo_id} has no folder {where!r}")
    return found


def _one_file(repo_id: str, by_name: dict[str, RepoSibling], file: str) -> ChosenFiles:
    """A GGUF file, and the licences beside it."""
    if file not in by_name:
        others = sorted(name for name in by_name if name.endswith(GGUF))
        told = f"it has {', '.join(others[:SHOWN])}" if others else "it has no GGUF file"
        raise UnsafeModelError(
            "unsupported_architecture", f"{repo_id} has no file {file!r}; {told}"
        )
    terms = sorted(
        name
        for name, sibling in by_name.items()
        if is_terms_file(name) and (sibling.size or 0) <= MAX_SIDE_BYTES
    )
    return ChosenFiles(tuple(by_name[name] for name in terms), (by_name[file],))


def _indexed(repo_id: str, by_name: dict[str, RepoSibling], text: bytes) -> list[str]:
    """The weight files that the index names, all of which must be listed."""
    if len(text) > MAX_INDEX_BYTES:
        raise UnsafeModelError(
            "unsafe_format", f"{repo_id}: {INDEX_FILE} is larger than {MAX_INDEX_BYTES} bytes"
        )
    try:
        files = files_of_index(text)
    except ArtifactError as error:
        raise UnsafeModelError("unsafe_format", f"{repo_id}: {error}") from None
    missing = [file for file in files if file not in by_name]
    if missing:
        raise UnsafeModelError(
            "unsafe_format",
            f"{repo_id}: {INDEX_FILE} names {missing[0]!r}, which the repository does not have; "
            "ask its owner to upload it",
        )
    return files


def _without_weights(repo_id: str, names: list[str]) -> str:
    """What is there instead of weights."""
    risky = sorted(name for name in names if name.endswith(CODE_SUFFIXES))
    others = sorted(name for name in names if name.endswith(".safetensors"))
    detail = ""
    if risky:
        detail = f" It has {', '.join(risky[:SHOWN])}, which can run code when loaded."
    elif others:
        detail = f" It has {', '.join(others[:SHOWN])}, which no index names, so transformers would not load them."
    return (
        f"{repo_id} has neither {SINGLE_FILE} nor {INDEX_FILE}.{detail} "
        "Ask its owner for a safetensors version, saved by save_pretrained."
    )

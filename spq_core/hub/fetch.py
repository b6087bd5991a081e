"""Fetch a model from the Hub: at one commit, only files that cannot run code, checked before use."""

import errno
import re
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.hf_api import ModelInfo, RepoSibling

from spq_core.artifact.manifest import file_sha256
from spq_core.errors import UnsafeModelError
from spq_core.hub.client import translated_errors
from spq_core.hub.errors import HubError, HubUnavailableError
from spq_core.hub.listing import choose_files
from spq_core.hub.range_requests import read_range
from spq_core.models.model_folder import SETTINGS_FILES, check_settings, read_json_object
from spq_core.models.reading import AS_IT_IS, Reading

REPO_ID = re.compile(r"[A-Za-z0-9][\w.\-]{0,95}(/[A-Za-z0-9][\w.\-]{0,95})?", re.ASCII)
DISK_MARGIN_BYTES = 1 << 30
SLACK_BYTES = 64 << 20
"""For what else this process writes meanwhile: the limit holds for a log it appends to, too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchedModel:
    """A model folder and the commit it came from."""

    folder: Path
    repo_id: str
    commit: str
    license: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchLimits:
    """What a repository may cost."""

    max_bytes: int = 200 << 30


def fetch_model(
    api: HfApi,
    repo_id: str,
    revision: str,
    target: Path,
    *,
    limits: FetchLimits,
    reading: Reading = AS_IT_IS,
    report: Callable[[str, int, int], None] = lambda _name, _done, _total: None,
) -> FetchedModel:
    """Download the safetensors, configuration and tokenizer of one commit into `target`, or one GGUF file.

    config.json is read and judged first, so that an unsuitable model costs no weights. What lies in a subfolder of the
    repository lies in one of `target`, which is then the model's folder.

    Args:
        report: called after each file with its name, bytes so far and bytes in all.

    Raises:
        UnsafeModelError, UnsupportedModelError: the repository cannot be compressed; no weights
            were fetched.
        HubError, HubUnavailableError: the Hub refused, or did not answer.
    """
    if not REPO_ID.fullmatch(repo_id):
        raise HubError("model_not_found", f"{repo_id[:100]!r} is not a repository id")
    with translated_errors(repo_id):
        info = api.model_info(repo_id, revision=revision, files_metadata=True)
        commit = str(info.sha)
        chosen = choose_files(
            repo_id, info.siblings or [],
            lambda file, most: read_range(api, repo_id, commit, file, 0, most), reading,
        ).all  # fmt: skip
        total = sum(sibling.size or 0 for sibling in chosen)
        _check_room(repo_id, total, target, limits)
        done = 0
        for sibling in chosen:
            with _no_larger_than_listed(sibling):
                path = Path(
                    api.hf_hub_download(
                        repo_id, sibling.rfilename, revision=commit, local_dir=target
                    )
                )
            _check_download(sibling, path)
            if path.name in SETTINGS_FILES:
                check_settings(path.name, read_json_object(path), reading)
            done += sibling.size or 0
            report(sibling.rfilename, done, total)
    shutil.rmtree(target / ".cache", ignore_errors=True)
    return FetchedModel(
        folder=target / reading.subfolder, repo_id=repo_id, commit=commit, license=_license(info)
    )


def require_named(model: str) -> None:
    """Tell a mistyped folder from a repository.

    Raises:
        HubError: it cannot be the name of a repository.
    """
    if not REPO_ID.fullmatch(model):
        raise HubError(
            "model_not_found",
            f"there is no folder or file {model[:200]!r}, and models on the Hub are named owner/name",
        )


def _check_room(repo_id: str, total: int, target: Path, limits: FetchLimits) -> None:
    if total > limits.max_bytes:
        raise HubError(
            "too_large_for_worker",
            f"{repo_id} has {total} bytes, this service takes up to {limits.max_bytes}",
        )
    target.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(target).free
    if total + DISK_MARGIN_BYTES > free:
        raise HubError(
            "insufficient_disk", f"{repo_id} needs {total} bytes, the worker has {free} free"
        )


@contextmanager
def _no_larger_than_listed(sibling: RepoSibling) -> Iterator[None]:
    """Have the kernel stop a download that goes on and on, before it fills the disk.

    Raises:
        UnsafeModelError: it was stopped.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    most = (sibling.size or 0) + SLACK_BYTES
    if soft != resource.RLIM_INFINITY:
        most = min(most, soft)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    try:
        yield
    except OSError as error:
        if error.errno != errno.EFBIG:
            raise
        raise UnsafeModelError(
            "unsafe_format",
            f"{sibling.rfilename} has more bytes than the {sibling.size} that the Hub lists",
        ) from None
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def _check_download(sibling: RepoSibling, path: Path) -> None:
    """Compare a download with what the listing promised."""
    size = path.stat().st_size
    if sibling.size is not None and size != sibling.size:
        raise HubUnavailableError(
            f"{sibling.rfilename}: got {size} bytes, the Hub lists {sibling.size}"
        )
    if sibling.lfs is not None and file_sha256(path) != sibling.lfs.sha256:
        raise HubUnavailableError(f"{sibling.rfilename}: the bytes do not match the Hub's sha256")


def _license(info: ModelInfo) -> str | None:
    card = info.card_data
    value = card.get("license") if card is not None else None
    return value if isinstance(value, str) else None

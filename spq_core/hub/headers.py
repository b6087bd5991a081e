"""What a repository's weights look like, from their headers: a few hundred kilobytes of any model."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from huggingface_hub import HfApi

from spq_core.errors import UnsafeModelError
from spq_core.hub.client import translated_errors
from spq_core.hub.errors import HubError
from spq_core.hub.fetch import REPO_ID
from spq_core.hub.listing import choose_files
from spq_core.hub.range_requests import read_range
from spq_core.models.model_folder import check_settings, parse_json_object
from spq_core.models.quantized.forms import is_quantized, widened_headers
from spq_core.models.reading import AS_IT_IS, Reading, require_headers
from spq_core.models.weight_files import (
    INDEX_FILE,
    LENGTH_BYTES,
    MAX_HEADER_BYTES,
    MAX_TENSORS,
    WeightHeader,
    checked_tensor,
    parse_header,
)

MAX_FILES = 512
MAX_CONCURRENT = 4
MAX_CONFIG_BYTES = 4 << 20
FIRST_BYTES = 100_000
"""Most headers are shorter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelHeaders:
    """A model without its weights."""

    config: Mapping[str, Any]
    tensors: Mapping[str, WeightHeader]
    source_bytes: int
    """Of the weight files and their index; of quantized weights, what they take when widened."""
    fetched_bytes: int
    """Of everything a job would download."""
    commit: str | None


def fetch_headers(
    api: HfApi, repo_id: str, revision: str, reading: Reading = AS_IT_IS
) -> ModelHeaders:
    """Read config.json and the headers of all weight files at one commit.

    What is quantized, and may be widened, is told as it is when widened.

    Raises:
        UnsafeModelError: the repository has no safetensors weights, or malformed ones.
        UnsupportedModelError: its weights are in a GGUF file.
        HubError, HubUnavailableError: the Hub refused, or did not answer.
    """
    if not REPO_ID.fullmatch(repo_id):
        raise HubError("model_not_found", f"{repo_id[:100]!r} is not a repository id")
    require_headers(reading)
    with translated_errors(repo_id):
        info = api.model_info(repo_id, revision=revision, files_metadata=True)
        commit = str(info.sha)
        chosen = choose_files(
            repo_id, info.siblings or [], partial(_first_bytes, api, repo_id, commit), reading
        )
        sizes = {sibling.rfilename: sibling.size or 0 for sibling in chosen.all}
        files = [sibling.rfilename for sibling in chosen.weights]
        if len(files) > MAX_FILES:
            raise UnsafeModelError(
                "unsafe_format",
                f"{repo_id} has {len(files)} weight files, at most {MAX_FILES} are read",
            )
        document = _config(api, repo_id, commit, reading)
        config = check_settings("config.json", document, reading)
        with ThreadPoolExecutor(MAX_CONCURRENT) as pool:
            tensors: dict[str, WeightHeader] = {}
            for header in pool.map(lambda file: _header(api, repo_id, commit, file), files):
                tensors |= header
                if len(tensors) > MAX_TENSORS:
                    raise UnsafeModelError(
                        "unsafe_format", f"{repo_id} has more than {MAX_TENSORS} tensors"
                    )
    index = reading.inside(INDEX_FILE)
    stored = sum(sizes[file] for file in (*files, index) if file in sizes)
    widened = widened_headers(document, tensors)
    return ModelHeaders(
        config=config,
        tensors=widened,
        source_bytes=sum(one.n_bytes for one in widened.values())
        if is_quantized(document)
        else stored,
        fetched_bytes=sum(sizes.values()),
        commit=commit,
    )


def _config(api: HfApi, repo_id: str, commit: str, reading: Reading) -> dict[str, Any]:
    """As much of it as a configuration can be, whatever the Hub lists and sends."""
    name = reading.inside("config.json")
    raw = read_range(api, repo_id, commit, name, 0, MAX_CONFIG_BYTES + 1)
    if len(raw) > MAX_CONFIG_BYTES:
        raise UnsafeModelError(
            "unsafe_config", f"{repo_id}: config.json is larger than {MAX_CONFIG_BYTES} bytes"
        )
    return parse_json_object("config.json", raw)


def _first_bytes(api: HfApi, repo_id: str, commit: str, file: str, most: int) -> bytes:
    return read_range(api, repo_id, commit, file, 0, most)


def _header(api: HfApi, repo_id: str, commit: str, file: str) -> dict[str, WeightHeader]:
    """Two requests at most. The client's own reader takes minutes for some hostile headers."""
    raw = read_range(api, repo_id, commit, file, 0, FIRST_BYTES)
    length = int.from_bytes(raw[:LENGTH_BYTES], "little")
    stop = LENGTH_BYTES + length
    if len(raw) < LENGTH_BYTES or length > MAX_HEADER_BYTES:
        raise UnsafeModelError("unsafe_format", f"{repo_id}: {file} is not a safetensors file")
    if stop > len(raw):
        raw += read_range(api, repo_id, commit, file, len(raw), stop)
    entries = parse_header(file, raw[LENGTH_BYTES:stop])
    return {
        name: checked_tensor(
            file,
            name,
            *((entry.get("dtype"), entry.get("shape")) if isinstance(entry, dict) else (0, 0)),
        )
        for name, entry in entries.items()
    }

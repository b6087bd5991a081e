"""Some bytes of a file on the Hub, without the client's cache and its temporary files."""

from huggingface_hub import HfApi, hf_hub_url
from huggingface_hub.utils import (  # type: ignore[attr-defined]
    build_hf_headers,
    get_session,
    hf_raise_for_status,
)


def read_range(api: HfApi, repo_id: str, commit: str, file: str, start: int, stop: int) -> bytes:
    """Bytes `start` to `stop` of a file, or all up to its end."""
    url = hf_hub_url(repo_id, file, revision=commit, endpoint=api.endpoint)
    headers = build_hf_headers(token=api.token) | {"Range": f"bytes={start}-{stop - 1}"}
    found = bytearray()
    with get_session().stream("GET", url, headers=headers, follow_redirects=True) as response:
        if response.is_error:
            response.read()
        hf_raise_for_status(response)
        for part in response.iter_bytes():
            found += part
            if len(found) >= stop - start:  # a server may ignore the range
                break
    return bytes(found[: stop - start])

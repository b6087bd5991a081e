"""Hostile models, and what they must not get: code run, files read, memory, time."""

import json
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.hub_server import StubHub, stub_hub

SECONDS, PEAK_BYTES = 60.0, 300 << 20


@pytest.fixture
def hub() -> Iterator[StubHub]:
    with stub_hub() as running:
        yield running


@pytest.fixture
def hostile(tiny_llama: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of a tiny model with other files, or other keys in its JSON files."""

    def make(files: dict[str, bytes] | None = None, **changes: dict) -> Path:
        folder = tmp_path / "hostile"
        shutil.copytree(tiny_llama, folder)
        for name, content in (files or {}).items():
            (folder / name).write_bytes(content)
        for stem, keys in changes.items():
            path = folder / f"{stem}.json"
            document = json.loads(path.read_text()) if path.is_file() else {}
            path.write_text(json.dumps(document | keys))
        return folder

    return make


@contextmanager
def cheaply() -> Iterator[None]:
    """What happens here takes little time and memory."""
    begun, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    assert time.monotonic() - begun < SECONDS
    assert grown < PEAK_BYTES

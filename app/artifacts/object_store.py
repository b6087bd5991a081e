"""An S3-compatible object store (through obstore), which workers reach without a shared file system.

    <prefix>/artifacts/<job>/<sha256>                 a file of an artifact, called by its content
    <prefix>/work/<job>/<attempt>/index.json          what an unfinished attempt's work folder held, in one object
    <prefix>/work/<job>/<attempt>/files/<version>     the files it names

Nothing here is ever written over with other content, but an index, which is its attempt's own. So whatever a frozen
attempt uploads when it wakes up changes no file that the database lists, and no work of another attempt.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import IO, Any

import obstore
from obstore.store import S3Store

from app.artifacts.snapshot import linked, version_of
from app.artifacts.store import StoredFile
from app.artifacts.store_errors import asked
from app.domain.errors import DamagedArtifactError, FencedError, StoreAwayError
from app.telemetry import log

ARTIFACTS, WORK = "artifacts", "work"
INDEX, CLAIM = "index.json", "claim"
CHUNK = 16 << 20
"""Bytes of a part of an upload; S3 allows 10,000 parts, so a file may have 160 GB."""
PARTS_AT_ONCE = 4
PIECE = 8 << 20
"""Bytes of one request of a download: each may be repeated by itself, and a slow reader holds none open."""
TRIES = 3
_JOB = re.compile(r"job_[0-9a-f]{32}")
_VERSION = re.compile(r"[0-9a-f-]+")


def connect(address: str, tries: int = 4) -> "ObjectStore":
    """The store at `s3://bucket/prefix`.

    Region, keys and endpoint come from the variables that AWS's own tools read: AWS_REGION, AWS_ACCESS_KEY_ID,
    AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL, or from the machine's role.

    Raises:
        ValueError: it is no such address.
    """
    match = re.fullmatch(
        r"s3://(?P<bucket>[a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?P<prefix>/.*)?", address
    )
    if match is None:
        raise ValueError(f"{address!r} is no address of an object store; write s3://bucket/prefix")
    prefix = (match["prefix"] or "").strip("/")
    store = S3Store(
        match["bucket"],
        prefix=prefix or None,
        client_options={"allow_http": True, "connect_timeout": "10s", "timeout": "120s"},
        retry_config={"max_retries": tries, "retry_timeout": timedelta(minutes=1)},
    )
    return ObjectStore(store)


@dataclass(frozen=True, slots=True)
class ObjectStore:
    """A bucket, or what is below a prefix of one."""

    store: Any

    def take_over(self, job_id: str, attempt: int, scratch: Path) -> Path:
        """Download what the newest predecessor saved.

        Raises:
            FencedError: a later attempt has begun already.
        """
        work = scratch / "work"
        work.mkdir()
        attempts = self.attempts(job_id)
        if any(other > attempt for other in attempts):
            raise FencedError(job_id, attempt)
        self.put(f"{WORK}/{job_id}/{attempt}/{CLAIM}", b"")
        for earlier in sorted(attempts, reverse=True):
            if earlier < attempt and self._restored(f"{WORK}/{job_id}/{earlier}", work):
                break
        return work

    def work_copy(self, job_id: str, attempt: int, work: Path) -> "UploadedWork":
        """Uploads what changes."""
        return UploadedWork(self, job_id, attempt, work)

    def keep(self, job_id: str, work: Path, files: Sequence[StoredFile]) -> Path:
        """Upload the artifact's files under their digests.

        Raises:
            DamagedArtifactError: a file's content is not the one it is listed with.
        """
        for file in files:
            path = work / "artifact" / file.path
            with open(path, "rb", opener=_no_link) as content:
                before = os.fstat(content.fileno())
                if hashlib.file_digest(content, "sha256").hexdigest() != file.sha256:
                    raise DamagedArtifactError(file.path)
                content.seek(0)
                self.put(_key(job_id, file), content)
                after = os.fstat(content.fileno())
            if (before.st_mtime_ns, before.st_size) != (after.st_mtime_ns, after.st_size):
                self.forget_files([_key(job_id, file)])
                raise DamagedArtifactError(file.path)
        return work / "artifact"

    def drop_work(self, job_id: str) -> None:
        """Delete what all attempts saved."""
        self._delete_below(f"{WORK}/{job_id}/")

    def read(
        self, job_id: str, file: StoredFile, start: int = 0, stop: int | None = None
    ) -> Iterator[bytes]:
        """Read an object.

        Raises:
            FileNotFoundError: it is not there.
        """
        stop = file.bytes if stop is None else stop
        key = _key(job_id, file)
        pieces = self._pieces(key, start, stop)
        try:
            with asked():
                first = next(pieces, None)
                if first is None:  # of no bytes; it must be there all the same
                    obstore.head(self.store, key)
        except FileNotFoundError:
            self._require_bucket()
            raise
        return chain([first or b""], pieces)

    def remove(self, job_id: str) -> None:
        """Delete the job's objects."""
        self._delete_below(f"{ARTIFACTS}/{job_id}/")

    def settle(self, job_id: str, files: Sequence[StoredFile]) -> None:
        """Delete what other attempts uploaded."""
        listed = {_key(job_id, file) for file in files}
        self._delete([key for key in self._keys(f"{ARTIFACTS}/{job_id}/") if key not in listed])

    def jobs(self) -> set[str]:
        """Jobs with an object."""
        return {name for name in self._folders(f"{ARTIFACTS}/") if _JOB.fullmatch(name)}

    def jobs_with_work(self) -> set[str]:
        """Jobs with a saved work folder."""
        return {name for name in self._folders(f"{WORK}/") if _JOB.fullmatch(name)}

    def put(self, key: str, content: bytes | Path | IO[bytes]) -> None:
        """Upload an object."""
        try:
            with asked():
                obstore.put(
                    self.store, key, content, chunk_size=CHUNK, max_concurrency=PARTS_AT_ONCE
                )
        except FileNotFoundError:  # a bucket that is not there, an upload that was aborted
            if isinstance(content, Path) and not content.exists():
                raise
            raise StoreAwayError("it has no such bucket, or aborted the upload") from None

    def forget_work(self, job_id: str, attempts: Iterable[int]) -> None:
        """Delete what some attempts saved."""
        for attempt in attempts:
            self._delete_below(f"{WORK}/{job_id}/{attempt}/")

    def forget_files(self, keys: Sequence[str]) -> None:
        """Delete some objects."""
        self._delete(keys)

    def attempts(self, job_id: str) -> set[int]:
        """Attempts that have begun."""
        return {int(name) for name in self._folders(f"{WORK}/{job_id}/") if name.isdecimal()}

    def _restored(self, saved: str, work: Path) -> bool:
        """Fill `work` with what was saved; False if nothing complete was.

        Its writer may still be at it, and delete what a newer index does not name: then that index is read.
        """
        for _ in range(TRIES):
            try:
                with asked():
                    content = bytes(obstore.get(self.store, f"{saved}/{INDEX}").bytes())
            except FileNotFoundError:
                return False
            files = _indexed(content)
            if files is None:
                log.warning("saved_work_unusable", index=f"{saved}/{INDEX}")
                return False
            with suppress(FileNotFoundError):
                complete = all(
                    self._download(f"{saved}/files/{version}", size, work / name)
                    for name, (version, size) in files.items()
                )
                if complete:
                    return True
            for path in work.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        return False

    def _download(self, key: str, size: int, path: Path) -> bool:
        """Whether the object is there in that size, and now on this disk too."""
        with asked():
            found = obstore.head(self.store, key)["size"]
        if found != size:
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as target:
            for piece in self._pieces(key, 0, size):
                target.write(piece)
        return True

    def _require_bucket(self) -> None:
        """Tell an object that is not there from a bucket that is not there.

        Raises:
            StoreAwayError: it is the bucket.
        """
        try:
            with asked():
                next(iter(obstore.list(self.store, f"{WORK}/", chunk_size=1)), None)
        except FileNotFoundError:
            raise StoreAwayError("it has no such bucket") from None

    def _pieces(self, key: str, start: int, stop: int) -> Iterator[bytes]:
        for at in range(start, stop, PIECE):
            with asked():
                piece = obstore.get_range(self.store, key, start=at, end=min(at + PIECE, stop))
            if len(piece) != min(PIECE, stop - at):
                raise StoreAwayError("an object is shorter than it was")
            yield bytes(piece)

    def _folders(self, prefix: str) -> Iterator[str]:
        with asked():
            listed = obstore.list_with_delimiter(self.store, prefix)
        return (str(path).rstrip("/").rpartition("/")[2] for path in listed["common_prefixes"])

    def _keys(self, prefix: str) -> list[str]:
        with asked():
            return [entry["path"] for page in obstore.list(self.store, prefix) for entry in page]

    def _delete_below(self, prefix: str) -> None:
        self._delete(self._keys(prefix))

    def _delete(self, keys: Sequence[str]) -> None:
        if keys:
            with asked(), suppress(FileNotFoundError):
                obstore.delete(self.store, keys)


@dataclass(slots=True)
class UploadedWork:
    """An attempt's work folder in the object store: versions of its files, and an index that names them."""

    store: ObjectStore
    job_id: str
    attempt: int
    work: Path
    uploaded: set[str] = field(default_factory=set)
    """Versions that are there."""
    index: bytes = b""
    """What was said of them last."""

    def save(self, stop: Callable[[], bool] = lambda: False) -> bool:
        """Upload what has changed since the last time."""
        with linked(self.work) as files:
            if files is None:
                return False
            versions = {name: version_of(path) for name, path in files.items()}
            sizes = {name: path.stat().st_size for name, path in files.items()}
            for name, version in versions.items():
                if stop():
                    return False
                if version not in self.uploaded:
                    self.store.put(f"{self._base}/files/{version}", files[name])
                    if version_of(files[name]) != version:  # written to meanwhile
                        return False
                    self.uploaded.add(version)
        saved = {name: {"version": versions[name], "bytes": sizes[name]} for name in versions}
        index = json.dumps({"files": saved}).encode()
        if index != self.index:
            self._tell(index, set(versions.values()))
        return True

    def _tell(self, index: bytes, versions: set[str]) -> None:
        """Put the index in place, and delete what nobody goes on from any more."""
        self.store.put(f"{self._base}/{INDEX}", index)
        if not self.index:
            earlier = {one for one in self.store.attempts(self.job_id) if one < self.attempt}
            self.store.forget_work(self.job_id, earlier)
        self.index = index
        stale = self.uploaded - versions
        self.store.forget_files([f"{self._base}/files/{version}" for version in stale])
        self.uploaded -= stale

    @property
    def _base(self) -> str:
        return f"{WORK}/{self.job_id}/{self.attempt}"


def _indexed(content: bytes) -> dict[str, tuple[str, int]] | None:
    """Version and size of each file by name; None for what no attempt of ours has written."""
    try:
        files = {
            str(name): (str(entry["version"]), int(entry["bytes"]))
            for name, entry in json.loads(content)["files"].items()
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    safe = all(_is_inside(name) and _VERSION.fullmatch(files[name][0]) for name in files)
    return files if safe else None


def _no_link(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW)


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts


def _key(job_id: str, file: StoredFile) -> str:
    return f"{ARTIFACTS}/{job_id}/{file.sha256}"

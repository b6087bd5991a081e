"""A stand-in for the Hub: the part of its HTTP protocol that huggingface_hub 2.4 uses, over a folder.

Repositories live in memory; every commit is kept, so tests can look at what was published. Faults
are injected by path fragment.
"""

import base64
import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException

from tests.servers import free_port

WRITE_TOKEN, READ_TOKEN = "hf_write_canary_token", "hf_read_token"
LFS_SUFFIXES = (".safetensors", ".bin", ".parquet")


@dataclass
class Commit:
    oid: str
    title: str
    description: str
    files: dict[str, bytes]


@dataclass
class Repo:
    private: bool = False
    gated: bool = False
    commits: list[Commit] = field(default_factory=list)

    def at(self, revision: str) -> Commit:
        if revision in {"main", "refs/convert/parquet"}:
            return self.commits[-1]
        for commit in self.commits:
            if commit.oid == revision:
                return commit
        raise _error(404, "RevisionNotFound")

    def add(self, files: dict[str, bytes], title: str, description: str = "") -> Commit:
        text = f"{len(self.commits)}{title}{sorted(files)}"
        commit = Commit(hashlib.sha1(text.encode()).hexdigest(), title, description, files)
        self.commits.append(commit)
        return commit


def _error(status: int, code: str) -> HTTPException:
    return HTTPException(status, code, {"X-Error-Code": code, "X-Error-Message": code})


class StubHub:
    """State of the server and the handlers over it."""

    def __init__(self) -> None:
        self.models: dict[str, Repo] = {}
        self.datasets: dict[str, Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.faults: list[tuple[str, int]] = []
        self.lost_answers: list[str] = []
        self.endless: set[str] = set()
        """Files whose bodies go on and on, whatever the listing says."""
        self.on_request: dict[str, Callable[[], object]] = {}
        """Called before a request whose path contains the fragment is answered."""
        self.sent_bytes = 0
        self.url = ""
        self.app = self._build()

    def add_model(self, name: str, folder: Path, *, readme: str = "", **options: bool) -> Commit:
        files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        if readme:
            files["README.md"] = readme.encode()
        repo = self.models.setdefault(name, Repo(**options))
        return repo.add(files, "initial")

    def fail_next(self, fragment: str, status: int, times: int = 1) -> None:
        """Answer the next `times` requests whose path contains `fragment` with `status`."""
        self.faults += [(fragment, status)] * times

    def downloaded(self) -> list[str]:
        """Names of files whose bodies were sent."""
        return [
            path.rsplit("/", 1)[-1]
            for method, path in self.requests
            if method == "GET" and "/resolve/" in path
        ]

    def _repo(self, kind: str, name: str, request: Request) -> Repo:
        repo = (self.datasets if kind == "datasets" else self.models).get(name)
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        if repo is None or (repo.private and token != WRITE_TOKEN):
            raise _error(404, "RepoNotFound")
        if repo.gated and token != WRITE_TOKEN:
            raise _error(403, "GatedRepo")
        return repo

    def _entry(self, name: str, content: bytes) -> dict[str, object]:
        sha256 = hashlib.sha256(content).hexdigest()
        entry: dict[str, object] = {
            "rfilename": name,
            "size": len(content),
            "blobId": hashlib.sha1(content).hexdigest(),
        }
        if name.endswith(LFS_SUFFIXES):
            entry["lfs"] = {"sha256": sha256, "size": len(content), "pointerSize": 134}
        return entry

    def _build(self) -> FastAPI:  # noqa: C901
        app = FastAPI()

        @app.middleware("http")
        async def watch(request: Request, call_next):
            path = request.url.path
            self.requests.append((request.method, path))
            for fragment, act in self.on_request.items():
                if fragment in path:
                    act()
            for fault in self.faults:
                if fault[0] in path:
                    self.faults.remove(fault)
                    return JSONResponse({"error": "injected"}, fault[1])
            answer = await call_next(request)
            for fragment in self.lost_answers:
                if fragment in path:
                    self.lost_answers.remove(fragment)
                    return JSONResponse({"error": "lost on the way"}, 504)
            return answer

        @app.post("/api/repos/create")
        async def create(request: Request):
            if request.headers.get("authorization") != f"Bearer {WRITE_TOKEN}":
                return JSONResponse({"error": "denied"}, 403)
            body = await request.json()
            name = f"{body['organization']}/{body['name']}"
            answer = {"url": f"{self.url}/{name}"}
            if name in self.models:
                return JSONResponse(answer | {"error": "exists"}, 409)
            repo = self.models[name] = Repo(private=body.get("visibility") == "private")
            repo.add({".gitattributes": b""}, "initial commit")
            return answer

        @app.post("/api/validate-yaml")
        async def validate_yaml():
            return {"errors": [], "warnings": []}

        @app.get("/api/{kind}/{owner}/{name}")
        @app.get("/api/{kind}/{owner}/{name}/revision/{revision:path}")
        async def info(request: Request, kind: str, owner: str, name: str, revision: str = "main"):
            repo = self._repo(kind, f"{owner}/{name}", request)
            commit = repo.at(revision)
            return {
                "id": f"{owner}/{name}", "sha": commit.oid, "private": repo.private, "gated": repo.gated,
                "tags": [], "cardData": {"license": "apache-2.0"},
                "siblings": [self._entry(path, content) for path, content in sorted(commit.files.items())],
            }  # fmt: skip

        @app.get("/api/{kind}/{owner}/{name}/commits/{revision}")
        async def commits(request: Request, kind: str, owner: str, name: str, revision: str):
            repo = self._repo(kind, f"{owner}/{name}", request)
            return [
                {
                    "id": one.oid,
                    "title": one.title,
                    "message": one.description,
                    "authors": [],
                    "date": "2026-01-01T00:00:00.000Z",
                }
                for one in reversed(repo.commits)
            ]

        @app.get("/api/{kind}/{owner}/{name}/tree/{revision}")
        async def tree(request: Request, kind: str, owner: str, name: str, revision: str):
            commit = self._repo(kind, f"{owner}/{name}", request).at(revision)
            entries = []
            for path, content in sorted(commit.files.items()):
                entry = self._entry(path, content)
                lfs = entry.get("lfs")
                extra = (
                    {"lfs": {"oid": lfs["sha256"], "size": lfs["size"], "pointerSize": 134}}
                    if lfs
                    else {}
                )
                entries.append(
                    {
                        "type": "file",
                        "path": path,
                        "size": len(content),
                        "oid": entry["blobId"],
                        **extra,
                    }
                )
            return entries

        @app.post("/api/models/{owner}/{name}/preupload/{revision}")
        async def preupload(request: Request, owner: str, name: str, revision: str):
            self._writable(request, f"{owner}/{name}")
            body = await request.json()
            return {
                "files": [
                    {"path": one["path"], "uploadMode": "lfs" if one["path"].endswith(LFS_SUFFIXES) else "regular",
                     "shouldIgnore": False, "oid": None}
                    for one in body["files"]
                ]
            }  # fmt: skip

        @app.post("/{owner}/{name}.git/info/lfs/objects/batch")
        async def batch(request: Request, owner: str, name: str):
            self._writable(request, f"{owner}/{name}")
            body = await request.json()
            objects = []
            for one in body["objects"]:
                known = one["oid"] in self.blobs
                actions = (
                    {}
                    if known
                    else {"actions": {"upload": {"href": f"{self.url}/lfs/{one['oid']}"}}}
                )
                objects.append({**one, **actions})
            return {"transfer": "basic", "objects": objects}

        @app.put("/lfs/{oid}")
        async def upload(request: Request, oid: str):
            content = await request.body()
            if hashlib.sha256(content).hexdigest() != oid:
                return JSONResponse({"error": "digest"}, 400)
            self.blobs[oid] = content
            return Response()

        @app.post("/api/models/{owner}/{name}/commit/{revision}")
        async def commit(request: Request, owner: str, name: str, revision: str):
            repo = self._writable(request, f"{owner}/{name}")
            lines = [json.loads(line) for line in (await request.body()).splitlines()]
            header = lines[0]["value"]
            if header.get("parentCommit") not in {None, repo.commits[-1].oid}:
                return JSONResponse({"error": "stale parent"}, 412)
            files = dict(repo.commits[-1].files)
            for line in lines[1:]:
                value = line["value"]
                if line["key"] == "deletedFile":
                    del files[value["path"]]
                    continue
                is_lfs = line["key"] == "lfsFile"
                files[value["path"]] = (
                    self.blobs[value["oid"]] if is_lfs else base64.b64decode(value["content"])
                )
            made = repo.add(files, header["summary"], header["description"])
            return {
                "commitUrl": f"{self.url}/{owner}/{name}/commit/{made.oid}",
                "commitOid": made.oid,
            }

        @app.head("/{owner}/{name}/resolve/{revision}/{path:path}")
        @app.get("/{owner}/{name}/resolve/{revision}/{path:path}")
        @app.head("/{kind}/{owner}/{name}/resolve/{revision}/{path:path}")
        @app.get("/{kind}/{owner}/{name}/resolve/{revision}/{path:path}")
        async def resolve(
            request: Request, owner: str, name: str, revision: str, path: str, kind: str = "models"
        ):
            commit = self._repo(kind, f"{owner}/{name}", request).at(revision)
            if path not in commit.files:
                raise _error(404, "EntryNotFound")
            content = commit.files[path]
            sha256 = path.endswith(LFS_SUFFIXES)
            digest = (
                hashlib.sha256(content).hexdigest() if sha256 else hashlib.sha1(content).hexdigest()
            )
            headers = {
                "X-Repo-Commit": commit.oid,
                "ETag": f'"{digest}"',
            }
            if path in self.endless and request.method == "GET":
                zeros = (bytes(1 << 16) for _ in range(1 << 13))
                return StreamingResponse(zeros, headers=headers)
            asked = re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers.get("range", ""))
            if asked and request.method == "GET":
                start, stop = int(asked[1]), min(int(asked[2]) + 1, len(content))
                headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
                self.sent_bytes += stop - start
                return Response(content[start:stop], 206, headers)
            headers["Content-Length"] = str(len(content))
            if request.method == "GET":
                self.sent_bytes += len(content)
            return Response(b"" if request.method == "HEAD" else content, headers=headers)

        return app

    def _writable(self, request: Request, name: str) -> Repo:
        if request.headers.get("authorization") != f"Bearer {WRITE_TOKEN}":
            raise _error(403, "Forbidden")
        return self._repo("models", name, request)


@contextmanager
def stub_hub() -> Iterator[StubHub]:
    """Run the server in a thread."""
    hub = StubHub()
    port = free_port()
    hub.url = f"http://127.0.0.1:{port}"
    server = uvicorn.Server(uvicorn.Config(hub.app, host="127.0.0.1", port=port, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield hub
    finally:
        server.should_exit = True
        thread.join(10)
